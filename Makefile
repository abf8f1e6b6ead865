# The developer interface. Every target makes what it needs; a fresh machine needs only Python >= 3.10 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The floor of the appliance is JetPack 6's Python 3.10; JetPack 7 brings 3.12.
FLOORS := 3.10 3.12

# Networks of the paper's size with random weights, for `superlens bench engine --model $(BENCH_MODELS)/NAME`: outside the
# repository, 0.5 GB; they take minutes and gigabytes of memory to make, so what is there stays.
BENCH_MODELS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/superlens/bench-models

.PHONY: run test check bench bench-models docs zoo install install-dev system-packages gpu-standins machine gpu-test bench-peers edge-pythons format clean

# The appliance alone: small, no torch. Training, export and the tools of the developers come on top of it.
install: $(VENV)/.appliance
install-dev: $(VENV)/.dev

# On a Jetson with JetPack's own tensorrt, which no index has, and with what runs it; pycuda is compiled with JetPack's CUDA.
ifneq ($(wildcard /etc/nv_tegra_release),)
VENV_FLAGS := --system-site-packages
APPLIANCE := .[jetson]
export CUDA_ROOT ?= /usr/local/cuda
else
APPLIANCE := .
endif

$(VENV)/.appliance: pyproject.toml
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '$(APPLIANCE)'
	touch $@

$(VENV)/.dev: $(VENV)/.appliance
	$(BIN)/pip install --quiet --editable '.[train,export,dev]'
	touch $@

run: install
	$(BIN)/superlens run

test: install-dev system-packages gpu-standins machine bench-peers
	$(BIN)/pytest
	$(MAKE) --no-print-directory edge-pythons

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/superlens bench loop

bench-models: $(BENCH_MODELS)/neural-lens-4x32/bundle.json $(BENCH_MODELS)/neural-lens-4x64/bundle.json

$(BENCH_MODELS)/%/bundle.json: | install-dev
	$(BIN)/superlens-export random $* --size 1024 --precision int8 --out $(@D)

docs: install-dev
	$(BIN)/pdoc --output-directory docs/api firmware_bridge edge models export

# `make zoo` retrains every bundle of models/zoo, `make zoo MODEL=enhance-rt` one; docs/models.md says how long each takes.
# A run that was cut off goes on where it was. INT8 of the two large networks is not shipped: `superlens-export convert
# models/zoo/NAME --out DIR --precision int8 --calibration synthetic:calibration` makes it in a minute.
MODEL ?= enhance-rt enhance-rt-x2 srcnn sem-lite neural-lens-mini
PRECISION = fp32 fp16 int8
zoo-sem-lite zoo-neural-lens-mini: PRECISION = fp32 fp16
zoo: $(MODEL:%=zoo-%)

zoo-%: install-dev
	$(BIN)/superlens-train fit $* --out build/$* $$(test ! -f build/$*/state.safetensors || echo --resume)
	$(BIN)/superlens-export convert build/$*/best.safetensors --out models/zoo/$* --calibration synthetic:calibration --precision $(PRECISION)
	$(BIN)/superlens-export evaluate models/zoo/$* --html build/$*.html --write-card

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The browser of the page's tests. Installed when we may; otherwise those tests say what is missing (in CI they fail).
system-packages:
	@sh .ci/system-packages

# What the GPU path is tested on where there is no GPU: TensorRT's own bindings without TensorRT, and real pycuda and
# cuda-bindings over a libcuda that is a CPU. Without gcc and nvcc those tests say what is missing (in CI they fail).
gpu-standins: install-dev
	$(BIN)/python tests/tensorrt/bindings.py install
	$(BIN)/python -m tests.cuda.standin

# A Debian with a kernel of its own, under QEMU: its GPIO lines, USB serial port and service are what tests/system/
# test_machine.py tests. Without root and QEMU those tests say what is missing (in CI they fail).
machine: install-dev system-packages
	$(BIN)/python -m tests.system.machine.build

# On a machine with an NVIDIA GPU, in a process of its own: a fault of the GPU ends it.
gpu-test: install-dev
	$(BIN)/pytest -m gpu tests/gpu

# What the benches compare with, in an environment of its own; `superlens bench` runs it as a process of its own.
bench-peers: .venv-peers/.installed

.venv-peers/.installed:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet 'pipython==2.11.0.6' 'pyserial>=3.5'
# Another driver of PI controllers, for tests/firmware_bridge/test_qmi.py, without what that driver of it does not use.
	.venv-peers/bin/pip install --quiet numpy psutil python-vxi11 pyusb colorama jsonschema pytz standard-xdrlib
	.venv-peers/bin/pip install --quiet --no-deps 'qmi==0.54.2; python_version >= "3.11"'
	touch $@

# The fast tests of the appliance and the bridge on the Pythons of JetPack 6 and 7, without torch installed.
edge-pythons: $(FLOORS:%=edge-python-%)

edge-python-%:
	@sh .ci/edge-python $*

clean:
	rm -rf $(VENV) .venv-py* build dist docs/api *.egg-info

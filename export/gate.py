"""Whether a file of less precision shows what FP32 shows: figures on pictures that decided nothing about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from export.calibration import Progress, Sample
from export.errors import ParityError
from export.manifest import Gate, Precision, Verification
from export.runtime import Infer
from models import metrics

Image = NDArray[np.float32]
Outputs = Mapping[str, Image]

LEAST_PSNR_DB = 35.0
MOST_LOSS_DB = 0.2
_NO_ERROR = 1e-20  # 200 dB, as in models.metrics


def outputs_of(infer: Infer, samples: Sequence[Sample], what: str, progress: Progress) -> list[Outputs]:
    """All outputs for every picture."""
    made = []
    for number, sample in enumerate(samples):
        progress(what, number, len(samples))
        made.append(infer(sample.image))
    progress(what, len(samples), len(samples))
    return made


def psnr_db(found: Sequence[Outputs], wanted: Sequence[Outputs]) -> dict[str, float]:
    """PSNR of each output to another's, peak 1, of the mean square error over all pictures; at most 200 dB.

    The mean of the errors, not of the figures: equal pictures, of an empty field say, would hide the others.
    """
    both = list(zip(found, wanted, strict=True))
    errors = {name: float(np.mean([_mse(a[name], b[name]) for a, b in both])) for name in wanted[0]}
    return {name: round(-10 * math.log10(max(error, _NO_ERROR)), 2) for name, error in errors.items()}


def judged(
    found: Sequence[Outputs],
    fp32: Sequence[Outputs],
    samples: Sequence[Sample],
    *,
    border_px: int,
    data: str,
    against: str,
) -> Verification:
    """The figures of a file, from its outputs and FP32's for the same pictures.

    A border is left out of the comparison with the truth. `psnr_db` is that of the output that differs most, `ssim`
    the least of the grey ones.

    Raises
    ------
    ParityError
        An output is not finite, as FP16's is that overflows.
    """
    if not all(np.isfinite(outputs[name]).all() for outputs in found for name in outputs):
        raise ParityError(f"some outputs are not numbers (against {against}); use another precision")
    parity = psnr_db(found, fp32)
    both = list(zip(found, fp32, strict=True))
    grey = [name for name, picture in fp32[0].items() if picture.ndim == 2]
    ssims = [float(np.mean([metrics.ssim(a[name], b[name]) for a, b in both])) for name in grey]
    losses = [_loss_db(both, samples, name, border_px) for name in samples[0].truths]
    return Verification(
        against=against,
        max_abs_error=max(float(np.abs(a[name] - b[name]).max()) for a, b in both for name in parity),
        psnr_db=min(parity.values()),
        ssim=round(min(ssims, default=1.0), 6),
        shapes_px=tuple(dict.fromkeys((int(s.image.shape[0]), int(s.image.shape[1])) for s in samples)),
        gate=Gate(
            data=data,
            images=len(samples),
            psnr_db=parity,
            loss_db=round(max(losses), 4) if losses else None,
        ),
    )


def check(precision: Precision, verification: Verification) -> None:
    """Refuse a file that shows something else than FP32.

    Raises
    ------
    ParityError
        An output is less than 35 dB from FP32's, or loses more than 0.2 dB of PSNR against the truth; with the
        figures.
    """
    gate = verification.gate
    if gate is None:
        raise ParityError(f"{precision} was not compared with FP32; give pictures with --calibration")
    name = min(gate.psnr_db, key=lambda output: gate.psnr_db[output])
    complaints = []
    # Not a number is not enough either.
    if not gate.psnr_db[name] >= LEAST_PSNR_DB:
        complaints.append(f"{gate.psnr_db[name]:.2f} dB from FP32 in {name!r}, expected at least {LEAST_PSNR_DB:g} dB")
    if gate.loss_db is not None and not gate.loss_db <= MOST_LOSS_DB:
        complaints.append(
            f"it loses {gate.loss_db:.3f} dB of PSNR against the truth, expected at most {MOST_LOSS_DB:g} dB"
        )
    if complaints:
        scheme = f" ({gate.scheme})" if gate.scheme else ""
        raise ParityError(
            f"{precision} fails its gate on {gate.images} pictures of {gate.data}{scheme}: {'; '.join(complaints)}."
            " It was not written; use another precision, or calibrate otherwise (--method, --calibration)"
        )


def _mse(a: Image, b: Image) -> float:
    return float(np.mean((a.astype(np.float64) - b) ** 2))


def _loss_db(both: Sequence[tuple[Outputs, Outputs]], samples: Sequence[Sample], name: str, border_px: int) -> float:
    """How much less PSNR to the truth the first has than the second, of the mean square error over all pictures."""
    errors = np.zeros(2)
    for outputs, sample in zip(both, samples, strict=True):
        truth = sample.truths[name]
        # A picture that is mostly border is judged whole.
        border = border_px if min(truth.shape[:2]) > 4 * border_px else 0
        window = (slice(border, truth.shape[0] - border), slice(border, truth.shape[1] - border))
        errors += [_mse(made[name][window], truth[window]) for made in outputs]
    mine, theirs = np.maximum(errors / len(samples), _NO_ERROR)
    return float(10 * np.log10(mine / theirs))

"""PI's own client doing what a scan does; run by `superlens bench bridge` with the Python of `.venv-peers`."""

import json
import sys
import time

AXES = ["1", "2"]


def main() -> None:
    """Read the work from stdin, print tiles per second and the share of a core."""
    from pipython import GCSDevice, pitools  # here: the environment of the appliance has none
    from pipython.pidevice.interfaces.piserial import PISerial

    work = json.load(sys.stdin)
    with PISerial(work["port"], work["baud"]) as gateway, GCSDevice(gateway=gateway) as device:
        device.SVO(["1", "2", "3"], [True] * 3)
        device.VEL(AXES, [work["velocity_um_s"]] * 2)

        def moveandwait(target: list[float]) -> None:
            pitools.moveandwait(device, AXES, target)
            device.qPOS(AXES)

        def loop(target: list[float]) -> None:
            device.MOV(AXES, target)
            while not all(device.qONT(AXES).values()):
                pass
            device.qPOS(AXES)

        go = {"moveandwait": moveandwait, "loop": loop}[work["way"]]
        first, *tiles = work["tiles"]
        go(first)
        begun_s, used_s = time.perf_counter(), time.process_time()
        for tile in tiles:
            go(tile)
        took_s = time.perf_counter() - begun_s
        used_s = time.process_time() - used_s
    sys.stdout.write(json.dumps({"tiles_per_s": len(tiles) / took_s, "cpu_fraction": used_s / took_s}))


if __name__ == "__main__":
    main()

"""Which commands each simulated controller knows, and how it writes numbers."""

from __future__ import annotations

_COMMON = (
    "*IDN? CSV? ERR? HLP? HPA? VER? SAI SAI? RBT CCL CCL? SPA SPA? "
    "MOV MOV? MVR STE HLT STP POS? ONT? OVF? SVO SVO? SVA SVA? VEL VEL? TMN? TMX? NLM NLM? PLM PLM? ATZ ATZ? "
    "VOL? VMI? VMA? TAD? "
    "CTO CTO? WAV WAV? WCL GWD? WSL WSL? WGC WGC? WTR WTR? WOS WOS? WGO WGO? TWG? TWS TWS? TWC "
    "RTR RTR? DRC DRC? DRT DRT? DRL? DRR? TNR? HDR?"
).split()
COMMANDS = {"e727": _COMMON, "e517": [*_COMMON, "ONL", "ONL?", "TPC?", "VCO", "VCO?", "TRO", "TRO?"]}
CTO_PARAMETERS = {"e727": (1, 2, 3, 5, 6, 7, 8, 9), "e517": (1, 2, 3, 4, 5, 6, 7, 12)}
NUMBERS = {"e727": "{:.5f}", "e517": "{:+010.4f}"}
MAX_ARGUMENTS = {"e727": 32, "e517": 1000}  # of one command; an E-517's is the length of its line

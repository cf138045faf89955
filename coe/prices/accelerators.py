"""What accelerators are called, and what their makers say of them.

Every source has its own names: ``NVIDIA A100-SXM-80GB`` (MLPerf), ``A100-80GB`` (SkyPilot), ``a100`` with 80 GB beside it
(gpuhunt), ``A100 (80 GB)`` (price tables), ``rtx3090`` (timm). Here each has one name, a key that other modules may compare,
and the name by which Ray knows it. A name that is not known is refused with the nearest that is; nothing is guessed.

The figures are the makers' datasheet values per device, dense (without sparsity): an upper bound that no program reaches.
`None` where the maker publishes no comparable figure.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from coe.errors import InvalidInput, Problem

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Accelerator:
    """One kind of accelerator: names, memory and peak rates of one device."""

    name: str
    memory_gib: float
    """Nominal, as sold; what is free to a program is a little less."""
    bandwidth_gb_per_s: float | None
    fp32_tflops: float | None
    fp16_tflops: float | None
    """Tensor cores where there are any, accumulating in fp32."""
    int8_tops: float | None
    ray_type: str | None
    """What `ray.util.accelerators` calls it; None where Ray has no name for it."""
    source: str
    also: tuple[str, ...] = ()
    """Other names in use."""

    def peak_flops_per_s(self, precision: Precision) -> float | None:
        """Operations per second at a precision, or None where the maker publishes none."""
        tera = {"fp32": self.fp32_tflops, "fp16": self.fp16_tflops, "int8": self.int8_tops}[precision]
        return None if tera is None else tera * 1e12

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """Bytes per second between the device's memory and its cores."""
        return None if self.bandwidth_gb_per_s is None else self.bandwidth_gb_per_s * 1e9


def _nv(*args: object, ray: str | None = None, also: tuple[str, ...] = (), sheet: str = "") -> Accelerator:
    name, memory, bandwidth, fp32, fp16, int8 = args
    source = f"NVIDIA {sheet or name} datasheet"
    return Accelerator(name, memory, bandwidth, fp32, fp16, int8, ray, source, also)  # type: ignore[arg-type]


ACCELERATORS: tuple[Accelerator, ...] = (
    # name, GiB, GB/s, fp32 TFLOP/s, fp16 TFLOP/s, int8 TOP/s
    _nv("K80", 12, 240, 4.37, None, None, ray="K80", sheet="Tesla K80 (one of its two GPUs)"),
    _nv("M60", 8, 160, 4.83, None, None, sheet="Tesla M60 (one of its two GPUs)"),
    _nv("P4", 8, 192, 5.5, None, 22, ray="P4"),
    _nv("P100", 16, 732, 10.6, 21.2, None, ray="P100", also=("P100-16GB", "P100-SXM2-16GB")),
    _nv("GTX-1080-Ti", 11, 484, 11.3, None, None, also=("1080Ti",)),
    _nv("V100-16GB", 16, 900, 15.7, 125, None, ray="V100", also=("V100-SXM2-16GB",), sheet="V100 SXM2"),
    _nv("V100-32GB", 32, 900, 15.7, 125, None, ray="V100", also=("V100-SXM2-32GB", "V100-SXM3-32GB"), sheet="V100 SXM2"),
    _nv("T4", 16, 320, 8.1, 65, 130, ray="T4", also=("T4-16GB", "T4-PCIe-16GB")),
    _nv("T4G", 16, 320, 8.1, 65, 130),
    _nv("RTX-4000", 8, 416, 7.1, 57, None, also=("Quadro RTX 4000", "RTX4000-8GB"), sheet="Quadro RTX 4000"),
    _nv("RTX-5000", 16, 448, 11.2, 89.2, None, also=("Quadro RTX 5000", "RTX5000-16GB"), sheet="Quadro RTX 5000"),
    _nv("RTX-6000", 24, 672, 16.3, 130.5, 261, also=("Quadro RTX 6000", "RTX6000-24GB"), sheet="Quadro RTX 6000"),
    _nv("A2", 16, 200, 4.5, 18, 36, also=("A2-16GB", "A2-PCIe-16GB")),
    _nv("A10", 24, 600, 31.2, 125, 250, also=("A10-24GB", "A10-PCIe-24GB")),
    _nv("A10G", 24, 600, 31.5, 70, 140, ray="A10G", also=("A10G-24GB",)),
    _nv("A30", 24, 933, 10.3, 165, 330, also=("A30-24GB", "A30-PCIe-24GB")),
    _nv("A40", 48, 696, 37.4, 149.7, 299.3, also=("A40-48GB", "A40-PCIe-48GB")),
    _nv("A100-40GB", 40, 1555, 19.5, 312, 624, ray="A100", also=("A100-40G", "A100-SXM4-40GB", "A100-SXM-40GB"), sheet="A100"),
    _nv(
        "A100-80GB", 80, 2039, 19.5, 312, 624, ray="A100", sheet="A100",
        also=("A100-80G", "A100-SXM-80GB", "A100-SXM4-80GB", "A100-80GB-SXM", "A100-PCIe-80GB", "A100-80GB-PCIe"),
    ),
    _nv("A4000", 16, 448, 19.2, 76.7, 153.4, also=("RTX A4000", "RTXA4000-16GB", "A4000-16GB"), sheet="RTX A4000"),
    _nv("A4500", 20, 640, 23.7, 94.6, 189.2, also=("RTX A4500", "RTXA4500-20GB", "A4500-20GB"), sheet="RTX A4500"),
    _nv("A5000", 24, 768, 27.8, 111.1, 222.2, also=("RTX A5000", "RTXA5000-24GB", "A5000-24GB"), sheet="RTX A5000"),
    _nv("A6000", 48, 768, 38.7, 154.8, 309.7, also=("RTX A6000", "RTXA6000-48GB", "A6000-48GB"), sheet="RTX A6000"),
    _nv("RTX-3080-Ti", 12, 912, 34.1, 68.2, 272.8, also=("3080Ti", "3080Ti-12GB"), sheet="GA102 whitepaper"),
    _nv("RTX-3090", 24, 936, 35.6, 71, 284, also=("RTX3090-24GB", "3090"), sheet="GA102 whitepaper"),
    _nv("L4", 24, 300, 30.3, 121, 242, ray="L4", also=("L4-24GB", "L4-PCIe-24GB")),
    _nv("L40", 48, 864, 90.5, 181, 362, also=("L40-48GB", "L40-PCIe-48GB")),
    _nv("L40S", 48, 864, 91.6, 362, 733, ray="L40S", also=("L40S-48GB", "L40S-PCIe-48GB")),
    _nv("RTX-4090", 24, 1008, 82.6, 165.2, 660.6, also=("4090", "RTX 4090 (Ada Lovelace)"), sheet="Ada whitepaper"),
    _nv("RTX-6000-Ada", 48, 960, 91.1, 364.2, 728.5, also=("RTX6000-Ada-48GB",), sheet="RTX 6000 Ada"),
    _nv("RTX-5090", 32, 1792, 104.8, 209.5, 838, also=("RTX5090-32GB", "5090"), sheet="RTX Blackwell whitepaper"),
    _nv(
        "RTX-PRO-4500", 32, 896, None, None, None, also=("RTX PRO 4500-32GB",), sheet="RTX PRO 4500 Blackwell"
    ),
    _nv(
        "RTX-PRO-6000", 96, 1597, 120, None, None, ray="RTX-PRO-6000",
        also=("RTX PRO Server 6000", "RTXPRO6000-96GB"), sheet="RTX PRO 6000 Blackwell Server",
    ),
    _nv(
        "H100-80GB", 80, 3350, 67, 989.4, 1979, ray="H100", sheet="H100 SXM",
        also=("H100", "H100-SXM", "H100-SXM5-80GB", "H100-80GB-SXM", "H100-80GB-HBM3", "H100-HGX", "H100-MEGA"),
    ),
    _nv("H100-PCIe", 80, 2000, 51, 756, 1513, ray="H100", also=("H100-PCIe-80GB", "H100-80GB-PCIe")),
    _nv("H100-NVL", 94, 3938, 60, 835, 1671, ray="H100", also=("H100-NVL-94GB",)),
    _nv("H200", 141, 4800, 67, 989.4, 1979, ray="H200", also=("H200-SXM", "H200-141GB", "H200-SXM-141GB"), sheet="H200 SXM"),
    _nv(
        "GH200-96GB", 96, 4000, 67, 989.4, 1979, sheet="GH200",
        also=("GH200 Grace Hopper Superchip 96GB",),
    ),
    _nv("GH200-144GB", 144, 4900, 67, 989.4, 1979, also=("GH200 Grace Hopper Superchip 144GB",), sheet="GH200"),
    _nv("B200", 180, 8000, 75, 2250, 4500, ray="B200", also=("B200-180GB", "B200-SXM-180GB"), sheet="HGX B200"),
    _nv("B300", 270, 8000, None, None, None, ray="B300", also=("B300-270GB", "B300-SXM"), sheet="HGX B300"),
    Accelerator(
        "MI300X", 192, 5300, 163.4, 1307.4, 2614.9, "AMD-Instinct-MI300X-OAM", "AMD Instinct MI300X datasheet",
        ("AMD-Instinct-MI300X-OAM", "MI300X-192GB", "AMD Instinct MI300X-NPS1-SPX-192GB-750W", "MI300X-NPS1-SPX-192GB-750W"),
    ),
    Accelerator(
        "CPU-i9-10940X", 0, 93.9, 2.96, None, None, None,
        "Intel: 14 cores x 3.3 GHz x 64 FLOP/cycle (AVX-512), four channels of DDR4-2933", ("cpu_i9_10940x",),
    ),
)  # fmt: skip

AMBIGUOUS = {
    "A100": ("A100-40GB", "A100-80GB"),
    "V100": ("V100-16GB", "V100-32GB"),
    "GH200": ("GH200-96GB", "GH200-144GB"),
}
"""Names that are sold with different memory: they need the memory beside them."""

_VENDOR = re.compile(r"\b(NVIDIA|TESLA|GEFORCE|AMD|INSTINCT|GOOGLE)\b", re.IGNORECASE)
_WITHIN = 0.1
"""Sources differ in what they call a gigabyte; 22.4 of 24 is the same memory."""


def _key(name: str) -> str:
    """Letters and digits only, without the maker: ``NVIDIA A100-SXM-80GB`` -> ``A100SXM80GB``."""
    return re.sub(r"[^A-Z0-9]", "", _VENDOR.sub(" ", name).upper())


_BY_KEY = {_key(n): a for a in ACCELERATORS for n in (a.name, *a.also)}
_BY_NAME = {a.name: a for a in ACCELERATORS}


def find(name: str, memory_gib: float | None = None) -> Accelerator | None:
    """The accelerator that a source calls `name`, with its memory where the source says it.

    None if unknown, and where the memory is not that of the name: a sixth of an A10 is called A10, too.
    """
    key = _key(name)
    if key in {_key(a) for a in AMBIGUOUS}:
        if memory_gib is None:
            return None
        options = [_BY_NAME[o] for o in AMBIGUOUS[next(a for a in AMBIGUOUS if _key(a) == key)]]
        return next((o for o in options if _close(o, memory_gib)), None)
    known = _BY_KEY.get(key)
    if known is not None:
        return known if memory_gib is None or known.memory_gib == 0 or _close(known, memory_gib) else None
    sized = re.fullmatch(r"(.+?)[\s(_-]+(\d+)\s*gi?b?\)?", name.strip(), re.IGNORECASE)
    if sized is None:
        return None
    plain = find(sized[1], float(sized[2]))  # ``K80 (12 GB)`` is a K80, as long as a K80 has 12
    return plain if plain is not None and _close(plain, float(sized[2])) else None


def _close(kind: Accelerator, memory_gib: float) -> bool:
    return abs(kind.memory_gib - memory_gib) <= _WITHIN * kind.memory_gib


def accelerator(name: str, memory_gib: float | None = None, where: str = "accelerator") -> Accelerator:
    """The accelerator that a source calls `name`.

    `memory_gib` of one device decides between ``A100-40GB`` and ``A100-80GB`` where the name alone does not. Raises
    `InvalidInput` naming the nearest known names; a slice of an accelerator (MIG) is none of these.
    """
    found = find(name, memory_gib)
    if found is None:
        raise InvalidInput(unknown(name, memory_gib, where))
    return found


def unknown(name: str, memory_gib: float | None = None, where: str = "accelerator") -> Problem:
    """Why `name` is no accelerator of ours, with the nearest names."""
    for short, options in AMBIGUOUS.items():
        if _key(name) == _key(short):
            beside = "" if memory_gib is None else f" with {memory_gib:g} GiB"
            return Problem(where, f"must say which one: {' or '.join(options)}", f"'{name}'{beside}")
    known = find(name)
    if known is not None and memory_gib is not None:
        rule = f"has {known.memory_gib:g} GiB; with {memory_gib:g} GiB it is a share of one, or another device"
        return Problem(where, rule, f"'{name}'")
    near = difflib.get_close_matches(_key(name), list(_BY_KEY), n=3, cutoff=0.5)
    names = list(dict.fromkeys(_BY_KEY[k].name for k in near))
    remedy = f"did you mean {' or '.join(names)}?" if names else f"known: {', '.join(_BY_NAME)}"
    return Problem(where, "is not a known accelerator", f"'{name}'", remedy)


def ray_type(name: str) -> str | None:
    """What Ray calls the accelerator of ours called `name` (``accelerator_type:...``), None where it has no name."""
    found = _BY_NAME.get(name)
    return None if found is None else found.ray_type

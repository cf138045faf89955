"""Names of accelerators: one for each, whatever a source calls it, and none for what is not known."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.errors import InvalidInput
from coe.prices.accelerators import ACCELERATORS, AMBIGUOUS, accelerator, find, ray_type
from coe.serving.labels import label_value


@pytest.mark.parametrize(
    ("called", "memory_gib", "name"),
    [
        ("NVIDIA A100-SXM-80GB", None, "A100-80GB"),
        ("A100-80GB", None, "A100-80GB"),
        ("A100-80G", None, "A100-80GB"),  # Ray
        ("a100-80gb", None, "A100-80GB"),
        ("A100 (80 GB)", None, "A100-80GB"),
        ("A100", 80.0, "A100-80GB"),
        ("a100", 40.0, "A100-40GB"),
        ("V100 (16 GB)", None, "V100-16GB"),
        ("Tesla T4", None, "T4"),
        ("L4", 22.4, "L4"),
        ("K80 (12 GB)", None, "K80"),
        ("rtx3090", None, "RTX-3090"),
        ("NVIDIA GeForce RTX 4090 (Ada Lovelace)", None, "RTX-4090"),
        ("NVIDIA H100-PCIe-80GB", None, "H100-PCIe"),
        ("NVIDIA H100-SXM-80GB", None, "H100-80GB"),
        ("H100 HGX (80GB)", None, "H100-80GB"),
        ("NVIDIA GH200 Grace Hopper Superchip 96GB", None, "GH200-96GB"),
        ("RTX A6000 (48 GB)", None, "A6000"),
        ("rtx-pro-server-6000", 96.0, "RTX-PRO-6000"),
        ("AMD Instinct MI300X-NPS1-SPX-192GB-750W", None, "MI300X"),
    ],
)
def test_every_source_means_the_same_thing(called: str, memory_gib: float | None, name: str) -> None:
    assert accelerator(called, memory_gib).name == name


@pytest.mark.parametrize(
    ("called", "memory_gib", "told"),
    [
        ("A100", None, "which one: A100-40GB or A100-80GB"),
        ("A100", 60.0, "'A100' with 60 GiB"),
        ("A100 (20 GB)", None, "did you mean"),
        ("NVIDIA A100-PCIe-80GB (1x1g.10gb MIG)", None, "A100-80GB"),  # a slice is no A100
        ("P100 (12 GB)", None, "P100"),
        ("A10", 4.0, "has 24 GiB; with 4 GiB it is a share of one"),
        ("L40SS", None, "L40S"),
        ("trainium", None, "known: K80"),
        ("", None, "known: K80"),
    ],
)
def test_what_is_not_known_is_refused_with_the_nearest(called: str, memory_gib: float | None, told: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(told)):
        accelerator(called, memory_gib)


def test_no_name_means_two_things() -> None:
    for kind in ACCELERATORS:
        for name in (kind.name, *kind.also):
            found = find(name, kind.memory_gib)
            assert found is not None
            assert found.name == kind.name, name
    assert len({a.name for a in ACCELERATORS}) == len(ACCELERATORS)
    assert {o for options in AMBIGUOUS.values() for o in options} <= {a.name for a in ACCELERATORS}


@given(st.sampled_from(ACCELERATORS), st.sampled_from(["NVIDIA ", "Tesla ", ""]), st.booleans(), st.sampled_from(" -_"))
def test_makers_case_and_dashes_do_not_matter(kind, maker: str, upper: bool, dash: str) -> None:
    called = maker + (kind.name.upper() if upper else kind.name.lower()).replace("-", dash)
    assert find(called) == kind


def test_names_fit_ray_and_ray_knows_its_own() -> None:
    ray_names = pytest.importorskip("ray.util.accelerators.accelerators")
    known = {value for value in vars(ray_names).values() if isinstance(value, str)}
    for kind in ACCELERATORS:
        assert label_value(kind.name) == kind.name
        assert kind.ray_type is None or kind.ray_type in known, kind.name
    assert ray_type("A100-80GB") == "A100"
    assert ray_type("RTX-3090") is None


def test_datasheet_values_are_plausible() -> None:
    """Rates rise with the width of a number, and no figure is off by a thousand."""
    for a in ACCELERATORS:
        rates = [r for r in (a.fp32_tflops, a.fp16_tflops, a.int8_tops) if r is not None]
        assert rates == sorted(rates), a.name
        assert all(1 < r < 10_000 for r in rates), a.name
        assert a.bandwidth_gb_per_s is None or 50 < a.bandwidth_gb_per_s < 10_000, a.name
        assert a.source
    t4 = accelerator("T4")
    assert t4.peak_flops_per_s("fp16") == 65e12
    assert t4.bandwidth_bytes_per_s == 320e9
    assert accelerator("K80").peak_flops_per_s("fp16") is None

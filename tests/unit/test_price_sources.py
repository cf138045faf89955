"""Published price lists: samples of every format as it is published, what is wrong with them, and the snapshot we ship."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coe import files
from coe.cli.main import run
from coe.cost.tokens import call_usd
from coe.errors import InvalidInput, Stale
from coe.prices.catalog import check_age, provenance
from coe.prices.owned import HOURS_PER_YEAR, owned_usd_per_hour
from coe.prices.rentals import Rental, named_offers
from coe.prices.sources import import_prices
from coe.prices.sources.asked import Asked
from coe.serving.labels import label_value
from coe.types import ApiPrice, Offer, Prices

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests/data"
DATA = Path(os.environ.get("COE_DATA", ROOT.parent / "shared/data"))
SNAPSHOT = ROOT / "cluster_configs/prices-2026-11-20.yaml"
NO_PROVIDER = ("cloud-vm", "fullstack", "litellm", "llm-csv")
"""Kinds whose files say whose prices they hold."""

needs_data = pytest.mark.skipif(not (DATA / "prices_cloud").exists(), reason="needs the price tables in COE_DATA")


def read(kind: str, name: str, **asked) -> tuple[dict[str, Offer], Prices, str]:
    """(offers by name, the price list, the notes) of one sample file."""
    options = {"day": "2026-11-01", "providers": ()} | asked
    prices, notes = import_prices(kind, [SAMPLES / name], Asked(**options))
    return {o.node_type: o for o in prices.offers}, prices, "\n".join(notes)


# --- Formats ----------------------------------------------------------------------------------------------------------


def test_skypilot_lambda() -> None:
    offers, _, _ = read("skypilot", "skypilot_lambda_vms.csv", providers=("lambda",))
    a100 = offers["gpu_8x_a100"]
    assert (a100.accelerator, a100.accelerators_per_node, a100.accelerator_memory_gib) == ("A100-40GB", 8, 40)
    assert (a100.usd_per_hour, a100.vcpus, a100.memory_gib) == (10.32, 124, 1800)
    assert (a100.region, a100.provider, a100.date) == ("us-east-1", "lambda", "2026-11-01")
    assert a100.source == "SkyPilot catalogue, skypilot_lambda_vms.csv"
    assert offers["gpu_8x_v100"].accelerator == "V100-16GB"
    assert offers["cpu_4x_general"].accelerator == "CPU-cpu_4x_general"
    assert offers["cpu_4x_general"].accelerators_per_node == 0
    assert {n for n in offers if "a6000" in n} == {"gpu_1x_a6000-europe-central-1", "gpu_1x_a6000-us-east-1"}
    assert offers["gpu_1x_a6000-us-east-1"].instance_type == "gpu_1x_a6000"


def test_skypilot_zones_at_one_price_are_one_offer() -> None:
    offers, _, notes = read("skypilot", "skypilot_runpod_vms.csv", providers=("runpod",))
    assert set(offers) == {
        "1x_A100-80GB_SECURE-CA",
        "1x_A100-80GB_SECURE-US",
        "1x_A100-80GB_SECURE-spot-CA",
        "1x_A100-80GB_SECURE-spot-US",
        "8x_A100-80GB-SXM_SECURE",
    }
    assert offers["1x_A100-80GB_SECURE-spot-US"].usd_per_hour == 1.19
    assert offers["8x_A100-80GB-SXM_SECURE"].accelerator == "A100-80GB"
    assert "2 rows say the same" in notes


def test_skypilot_zones_with_prices_of_their_own_keep_their_names() -> None:
    offers, _, _ = read("skypilot", "skypilot_aws_vms.csv", providers=("aws",), markets=("spot",))
    assert {n: o.usd_per_hour for n, o in offers.items()} == {
        "a1.2xlarge-ap-south-1-aps1-az2": 0.2032,
        "a1.2xlarge-ap-south-1-aps1-az3": 0.2033,
        "a1.2xlarge-us-east-1": 0.204,
    }


def test_skypilot_google_machines_get_their_accelerators(tmp_path: Path) -> None:
    sample = (SAMPLES / "skypilot_gcp_vms.csv").read_text()
    path = tmp_path / "vms.csv"
    path.write_text(sample + ",,,A100,1,A100,us-central1,us-central1-a,2.933908,1.173564\n")
    asked = Asked(day="2026-11-01", providers=("gcp",), skip_unusable=True)
    prices, notes = import_prices("skypilot", [path], asked)
    offers = {o.node_type: o for o in prices.offers}
    assert offers["a2-highgpu-1g"].usd_per_hour == pytest.approx(0.73948 + 2.933908)
    assert offers["a2-highgpu-1g-spot"].usd_per_hour == pytest.approx(0.29576 + 1.173564)
    assert offers["a2-highgpu-1g"].accelerator == "A100-40GB"
    assert "tpu-v6e-16" in "\n".join(notes)


def test_skypilot_google_machines_without_their_accelerators_are_no_cheap_cpu_nodes(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="a2-highgpu-1g"):
        read("skypilot", "skypilot_gcp_vms.csv", providers=("gcp",))
    offers, _, _ = read("skypilot", "skypilot_gcp_vms.csv", providers=("gcp",), skip_unusable=True)
    assert set(offers) == {"n1-highmem-8", "n1-highmem-8-spot"}
    rows = (SAMPLES / "skypilot_gcp_vms.csv").read_text().splitlines()
    (tmp_path / "hosts.csv").write_text("\n".join(rows[:2]).replace("a2-highgpu-1g", "a3-edgegpu-8g") + "\n")
    with pytest.raises(InvalidInput, match="a3-edgegpu-8g"):  # although the file has no accelerators at all
        import_prices("skypilot", [tmp_path / "hosts.csv"], Asked(day="2026-11-01", providers=("gcp",)))


def test_gpuhunt() -> None:
    offers, _, _ = read("gpuhunt", "gpuhunt_lambdalabs.csv", providers=("lambda",))
    assert [(n, o.accelerators_per_node, o.usd_per_hour) for n, o in offers.items()] == [
        ("i1", 1, 0.5),
        ("i2", 2, 1.0),
        ("i3", 4, 2.0),
        ("i4", 8, 4.0),
    ]
    assert {o.accelerator for o in offers.values()} == {"A10"}


def test_cloud_table_has_its_own_dates() -> None:
    offers, _, notes = read("cloud-vm", "cloud_vm.csv", day=None, skip_unusable=True)
    assert offers["g4dn.xlarge"].usd_per_hour == 0.526
    assert offers["g4dn.xlarge"].date == "2026-07-20"
    assert offers["p4de.24xlarge"].accelerator == "A100-80GB"
    assert offers["g2-standard-4-spot-us-central1"].usd_per_hour == 0.397336
    assert "inferentia" in notes
    with pytest.raises(InvalidInput) as error:
        read("cloud-vm", "cloud_vm.csv", day=None)
    text = str(error.value)
    assert "'inferentia'" in text
    assert "mem_gib: is missing" in text


def test_a_share_of_an_accelerator_is_no_offer(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text((SAMPLES / "cloud_vm.csv").read_text().replace("0.25,96.0,12.0,,", "0.25,96.0,12.0,45.0,"))
    with pytest.raises(InvalidInput, match="share of an accelerator.*0.25 RTX-PRO-6000"):
        import_prices("cloud-vm", [path], Asked(accelerators=("RTX-PRO-6000",)))


def test_full_stack_tables() -> None:
    offers, _, notes = read("fullstack", "fullstack.csv")
    assert offers["p4d.24xlarge"].accelerator == "A100-40GB"
    assert offers["p4d.24xlarge-spot"].usd_per_hour == 9.83
    assert offers["runpod-8xA40"].provider == "RunPod"
    assert "4 x $0.29 against $1.44" in notes
    assert offers["cudo-compute-4xA4000"].usd_per_hour == 1.44
    serverless, _, _ = read("fullstack-serverless", "fullstack_serverless.csv")
    assert {o.market for o in serverless.values()} == {"serverless"}
    assert serverless["banana-1xA5000"].usd_per_hour == 2.32


def test_litellm() -> None:
    _, prices, notes = read("litellm", "litellm.json")
    nova = prices.api("amazon.nova-lite-v1:0")
    assert (nova.usd_per_million_prompt_tokens, nova.usd_per_million_completion_tokens) == (0.06, 0.24)
    assert nova.provider == "bedrock_converse"
    assert prices.offers == ()
    assert "1 mode image_generation" in notes


def test_a_table_of_token_prices() -> None:
    _, prices, _ = read("llm-csv", "llm_prices.csv")
    assert prices.api("gpt-4o").usd_per_million_completion_tokens == 10.0


def test_our_own_yaml_is_given_our_names(tmp_path: Path) -> None:
    text = (ROOT / "cluster_configs/laptop.yaml").read_text()
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    prices, _ = import_prices("yaml", [path], Asked())
    assert [o.usd_per_hour for o in prices.offers] == [o.usd_per_hour for o in files.read_prices(path).offers]
    _, found, _ = read("litellm", "litellm.json")
    files.write(tmp_path / "api.yaml", found)
    merged, _ = import_prices("yaml", [path, tmp_path / "api.yaml"], Asked())
    assert len(merged.offers) == len(prices.offers)
    assert merged.apis == found.apis


@pytest.mark.parametrize(
    ("kind", "name", "asked"),
    [
        ("skypilot", "skypilot_lambda_vms.csv", {"providers": ("lambda",)}),
        ("gpuhunt", "gpuhunt_lambdalabs.csv", {"providers": ("lambda",)}),
        ("fullstack", "fullstack.csv", {}),
        ("litellm", "litellm.json", {}),
    ],
)
def test_what_is_imported_can_be_written_and_read_again(kind: str, name: str, asked: dict, tmp_path: Path) -> None:
    _, prices, _ = read(kind, name, **asked)
    files.write(tmp_path / "p.yaml", prices)
    assert files.read_prices(tmp_path / "p.yaml") == prices
    squeezed = tmp_path / (name + ".gz")
    squeezed.write_bytes(gzip.compress((SAMPLES / name).read_bytes()))
    options = {"day": "2026-11-01", "source": "x"} | asked
    again, _ = import_prices(kind, [squeezed], Asked(**options))
    assert [o.usd_per_hour for o in again.offers] == [o.usd_per_hour for o in prices.offers]


# --- What is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "old", "new", "told"),
    [
        ("skypilot", "skypilot_lambda_vms.csv", "Price,Region", "Cost,Region", "lacks the columns Price"),
        ("skypilot", "skypilot_lambda_vms.csv", "16.0,0.2,", "16.0,-0.2,", "vms.csv:2: Price: must be > 0, got -0.2"),
        ("skypilot", "skypilot_lambda_vms.csv", "16.0,0.2,", "16.0,0,", "Price: must be > 0, got 0"),
        ("skypilot", "skypilot_lambda_vms.csv", "16.0,0.2,", "16.0,€0.2,", "'€0.2'; prices must be in US dollars"),
        ("skypilot", "skypilot_lambda_vms.csv", "16.0,0.2,", "16.0,nan,", "Price: must be a finite number, got nan"),
        ("skypilot", "skypilot_lambda_vms.csv", ",V100,8.0", ",V100,8.5", "must be a whole number, got 8.5"),
        ("skypilot", "skypilot_lambda_vms.csv", "A6000,1.0", "A60OO,1.0", "'A60OO'; did you mean A6000"),
        ("skypilot", "skypilot_lambda_vms.csv", "0.2,us-east-1,,", "0.2,us-east-1,", "must have 9 cells"),
        ("gpuhunt", "gpuhunt_lambdalabs.csv", "i1,us,0.5", "i1,us,", "price: is missing"),
        (
            "gpuhunt",
            "gpuhunt_lambdalabs.csv",
            "24.0,False,,nvidia,\ni2",
            "24.0,no,,nvidia,\ni2",
            "True or False, got 'no'",
        ),
        ("gpuhunt", "gpuhunt_lambdalabs.csv", "i2,us,1.0,30,240,2", "i1,us,0.7,30,240,1", "'i1' has 2 prices"),
        ("fullstack", "fullstack.csv", "GPU RAM", "Name", "has a column twice"),
        ("fullstack", "fullstack.csv", "Volta,1,16", "Volta,0.5,16", "GPUs: must be >= 1, got 0.5"),
        ("litellm", "litellm.json", "6e-08", "-6e-08", "must be a number >= 0, got -6e-08"),
        ("litellm", "litellm.json", "6e-08", '"free"', "must be a number >= 0"),
        ("litellm", "litellm.json", "{", "", "is not valid JSON"),
        ("llm-csv", "llm_prices.csv", "30.0", "thirty", "usd_in_per_mtok: must be a number, got 'thirty'"),
    ],
)
def test_bad_rows_are_named_and_not_skipped(
    kind: str, name: str, old: str, new: str, told: str, tmp_path: Path
) -> None:
    text = (SAMPLES / name).read_text()
    assert old in text
    path = tmp_path / name
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidInput, match=re.escape(told)):
        import_prices(
            kind, [path], Asked(day="2026-11-01", providers=() if "l" in kind[:2] or kind == "fullstack" else ("p",))
        )


def test_a_list_in_another_currency_is_refused(tmp_path: Path) -> None:
    rows = (SAMPLES / "gpuhunt_lambdalabs.csv").read_text().splitlines()
    path = tmp_path / "mixed.csv"
    path.write_text("\n".join([rows[0] + ",currency", rows[1] + ",USD", rows[2] + ",EUR"]) + "\n")
    with pytest.raises(InvalidInput, match="mixed.csv:3: currency: must be USD, got 'EUR'"):
        import_prices("gpuhunt", [path], Asked(day="2026-11-01", providers=("lambda",)))
    ours = tmp_path / "ours.yaml"
    ours.write_text(SNAPSHOT.read_text().replace("currency: USD", "currency: EUR"))
    with pytest.raises(InvalidInput, match="currency: must be 'USD', got \"EUR\""):
        import_prices("yaml", [ours], Asked())


SAMPLE_OF = {
    "skypilot": "skypilot_gcp_vms.csv",
    "gpuhunt": "gpuhunt_lambdalabs.csv",
    "cloud-vm": "cloud_vm.csv",
    "fullstack": "fullstack.csv",
    "litellm": "litellm.json",
    "llm-csv": "llm_prices.csv",
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(SAMPLE_OF)), st.integers(0, 10_000), st.sampled_from(list('0-,"\n{}[]é$eE. ')), st.booleans()
)
def test_a_damaged_file_is_read_or_refused_and_never_breaks_us(
    tmp_path: Path, kind: str, at: int, sign: str, skip: bool
) -> None:
    text = (SAMPLES / SAMPLE_OF[kind]).read_text()
    at %= len(text)
    path = tmp_path / "damaged"
    path.write_text(text[:at] + sign + text[at + 1 :], encoding="utf-8")
    with contextlib.suppress(InvalidInput):
        prices, _ = import_prices(
            kind, [path], Asked(day="2026-11-01", providers=() if kind in NO_PROVIDER else ("p",), skip_unusable=skip)
        )
        assert all(o.usd_per_hour > 0 for o in prices.offers)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked(providers=("lambda",)), "give --date"),
        (Asked(day="yesterday", providers=("lambda",)), "--date: must be a day"),
        (Asked(day="2026-11-01"), "give --provider once"),
        (Asked(day="2026-11-01", providers=("lambda",), regions=("mars",)), "--region mars"),
        (Asked(day="2026-11-01", providers=("lambda",), accelerators=("H200",)), "--accelerator H200"),
    ],
)
def test_what_the_file_does_not_say_must_be_said(asked: Asked, told: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(told)):
        import_prices("skypilot", [SAMPLES / "skypilot_lambda_vms.csv"], asked)


def test_choosing_rows() -> None:
    asked = {"providers": ("lambda",), "accelerators": ("A6000", "CPU"), "regions": ("us-*",)}
    offers, _, _ = read("skypilot", "skypilot_lambda_vms.csv", **asked, quota=3)
    assert set(offers) == {"cpu_4x_general", "gpu_1x_a6000"}
    assert {o.quota for o in offers.values()} == {3}


def test_unknown_names_beside_those_asked_for_are_told() -> None:
    offers, _, notes = read("cloud-vm", "cloud_vm.csv", accelerators=("T4",), skip_unusable=True)
    assert set(offers) == {"g4dn.xlarge"}
    assert "not known were left out, too: inferentia" in notes


# --- Names and helpers ------------------------------------------------------------------------------------------------

RENTALS = st.builds(
    Rental,
    where=st.just("f:1"),
    provider=st.sampled_from(["a", "b"]),
    instance=st.sampled_from(["x.large", "x large", "y"]),
    accelerator=st.just("T4"),
    count=st.just(1),
    accelerator_memory_gib=st.just(16.0),
    vcpus=st.sampled_from([4.0, 8.0]),
    memory_gib=st.just(16.0),
    usd_per_hour=st.sampled_from([0.5, 0.6]),
    market=st.sampled_from(["on_demand", "spot"]),
    region=st.sampled_from(["r1", "r2"]),
    zone=st.sampled_from(["", "z1", "z2"]),
    date=st.just("2026-11-01"),
)


@given(st.lists(RENTALS, min_size=1, max_size=12))
def test_names_are_unique_and_no_price_is_lost(rentals: list[Rental]) -> None:
    """Every rental is found again, as an offer of its price or in a conflict that names its price."""
    named = named_offers(rentals, "s")
    names = [o.node_type for o in named.offers]
    assert len(names) == len(set(names))
    assert all(label_value(n) for n in names)
    told = "\n".join(map(str, named.conflicts))
    for r in rentals:
        same = [
            o
            for o in named.offers
            if (o.instance_type or o.node_type) == r.instance or (o.instance_type or "") == r.instance
            if (o.provider, o.region, o.market, o.vcpus, o.usd_per_hour)
            == (r.provider, r.region, r.market, r.vcpus, r.usd_per_hour)
        ]
        assert same or f"${r.usd_per_hour:g}" in told


def test_owned_hardware_by_hand() -> None:
    """$10,000 over 4 years, sold for $2,000, half a kilowatt at $0.20: 2000/8766 + 0.1."""
    usd = owned_usd_per_hour(10_000, 4, power_kw=0.5, usd_per_kwh=0.2, residual_usd=2_000)
    assert usd == pytest.approx(2_000 / 8766 + 0.1)
    assert HOURS_PER_YEAR == 8766
    halved = owned_usd_per_hour(10_000, 4, available=0.5)
    assert halved == pytest.approx(2 * owned_usd_per_hour(10_000, 4))
    with pytest.raises(InvalidInput) as error:
        owned_usd_per_hour(-1, 0, residual_usd=5, available=0)
    assert len(error.value.problems) == 4


def test_own_machines_are_amortised(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(
        "node_type,accelerator,accelerators_per_node,vcpus,memory_gib,count,purchase_usd,years,power_kw,usd_per_kwh\n"
        "rack-l4,NVIDIA L4,2,16,64,3,10000,4,0.5,0.2\n"
        "rack-cpu,,0,8,32,1,2000,5,,\n"
    )
    prices, _ = import_prices("owned", [path], Asked(day="2026-11-01"))
    l4, cpu = prices.offers
    assert (l4.market, l4.quota, l4.accelerator, l4.accelerators_per_node) == ("owned", 3, "L4", 2)
    assert l4.usd_per_hour == pytest.approx(2500 / 8766 + 0.1)
    assert cpu.usd_per_hour == pytest.approx(400 / 8766)
    for old, new, told in (
        ("10000,4", "10000,0", "years: must be > 0, got 0"),
        ("NVIDIA L4,2", "NVIDIA L4,1.5", "must be a whole number, got 1.5"),
        ("NVIDIA L4,2", ",2", "must be named exactly where"),
        ("NVIDIA L4", "L5", "'L5'; did you mean"),
    ):
        (tmp_path / "bad.csv").write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(InvalidInput, match=re.escape(told)):
            import_prices("owned", [tmp_path / "bad.csv"], Asked(day="2026-11-01"))


def test_two_files_with_the_same_names_are_not_mixed_up(tmp_path: Path) -> None:
    _, prices, _ = read("litellm", "litellm.json")
    files.write(tmp_path / "a.yaml", prices)
    with pytest.raises(InvalidInput, match="two prices of the hosted model 'ai21.j2-mid-v1 of bedrock'"):
        import_prices("yaml", [tmp_path / "a.yaml", tmp_path / "a.yaml"], Asked())
    with pytest.raises(InvalidInput, match="two offers of the name 'c7i.large'"):
        import_prices("yaml", [SNAPSHOT, SNAPSHOT], Asked())


API = ApiPrice(
    model="m",
    provider="p",
    usd_per_million_prompt_tokens=2.5,
    usd_per_million_completion_tokens=10.0,
    usd_per_call=0.001,
    source="s",
    date="2026-11-01",
)


def test_calls_by_hand() -> None:
    usd = call_usd(API, np.array([1_000_000, 0, 400]), np.array([0, 1_000_000, 100]))
    np.testing.assert_allclose(usd, [2.501, 10.001, 0.001 + 0.001 + 0.001])
    np.testing.assert_allclose(call_usd(API, 400, np.array([100, 100])), [0.003, 0.003])
    with pytest.raises(InvalidInput, match="completion_tokens: must be counts >= 0"):
        call_usd(API, 1, np.array([np.nan]))
    with pytest.raises(InvalidInput, match="one entry per call"):
        call_usd(API, np.ones(2), np.ones(3))


def test_age_gates_hosted_models_too() -> None:
    prices = Prices(apis=(API,))
    check_age(prices, "2026-11-20", 19)
    with pytest.raises(Stale, match="apis: m of p: its price must be at most 18 days old, got 19 days"):
        check_age(prices, "2026-11-20", 18)
    assert provenance([API], "2026-11-20") == "s (2026-11-01, 19 days old)"
    assert provenance([API], "2026-10-20") == "s (2026-11-01, in the future)"
    with pytest.raises(InvalidInput, match="no hosted model is called 'n'"):
        prices.api("n")


# --- The snapshot, and the published data itself ----------------------------------------------------------------------


def test_the_snapshot_is_whole() -> None:
    prices = files.read_prices(SNAPSHOT)
    assert len(prices.offers) > 40
    assert {o.market for o in prices.offers} == {"on_demand", "spot", "serverless"}
    assert {"aws", "gcp", "Azure", "lambda", "RunPod"} <= {o.provider for o in prices.offers}
    for priced in (*prices.offers, *prices.apis):
        assert "github.com/" in priced.source
        assert not re.search(r"(^|\s)/|shared|\.\./", priced.source)
        assert priced.date < "2026-11-20"
    again, _ = import_prices("yaml", [SNAPSHOT], Asked())
    assert [o.accelerator for o in again.offers] == [o.accelerator for o in prices.offers]


def test_spot_is_never_dearer_than_on_demand_in_the_snapshot() -> None:
    offers = files.read_prices(SNAPSHOT).offers
    full = {
        (o.provider, o.region, o.instance_type or o.node_type): o.usd_per_hour
        for o in offers
        if o.market == "on_demand"
    }
    spots = [o for o in offers if o.market == "spot"]
    assert len(spots) > 8
    for spot in spots:
        assert spot.usd_per_hour < full[spot.provider, spot.region, spot.instance_type or ""]


@needs_data
def test_every_cloud_figure_of_the_snapshot_is_published() -> None:
    """Each price stands in the row of that provider and instance type, read here without our readers."""
    published: set[tuple[str, str, float]] = set()
    with gzip.open(DATA / "prices_cloud/cloud_vm_prices.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            for column in ("usd_per_h", "spot_usd_per_h"):
                if row[column]:
                    published.add((row["provider"], row["instance_type"], float(row[column])))
    offers = [o for o in files.read_prices(SNAPSHOT).offers if o.provider in ("aws", "gcp", "lambda")]
    assert len(offers) > 20
    for offer in offers:
        assert (offer.provider, offer.instance_type or offer.node_type, offer.usd_per_hour) in published, (
            offer.node_type
        )


@needs_data
@pytest.mark.parametrize(
    ("kind", "name", "least"),
    [
        ("cloud-vm", "prices_cloud/cloud_vm_prices.csv.gz", 400),
        ("fullstack", "prices_cloud/cloud_gpus_fullstack.csv", 250),
        ("fullstack-serverless", "prices_cloud/serverless_gpus_fullstack.csv", 60),
        ("llm-csv", "prices_llm_api/llm_api_prices.csv", 1300),
    ],
)
def test_the_published_tables_are_sane(kind: str, name: str, least: int) -> None:
    asked = Asked(day="2026-01-01", skip_unusable=True)
    prices, _ = import_prices(kind, [DATA / name], asked)
    assert len(prices.offers) + len(prices.apis) >= least
    for offer in prices.offers:
        each = offer.usd_per_hour / offer.devices_per_node
        assert 0.003 < each < 20, offer.node_type
        assert 0.5 <= offer.memory_gib / offer.vcpus <= 60, offer.node_type
    spot = {(o.provider, o.instance_type, o.region): o for o in prices.offers if o.market == "spot"}
    for o in prices.offers:
        cheap = spot.get((o.provider, o.instance_type or o.node_type, o.region))
        assert o.market != "on_demand" or cheap is None or cheap.usd_per_hour <= o.usd_per_hour
    for api in prices.apis:
        assert api.usd_per_million_prompt_tokens <= api.usd_per_million_completion_tokens * 1000 or not (
            api.usd_per_million_completion_tokens
        )


@needs_data
def test_two_independent_tables_agree_on_list_prices() -> None:
    """Google's on-demand price of an A100 machine and AWS' of a T4 machine stand in both tables."""
    full, _ = import_prices(
        "fullstack",
        [DATA / "prices_cloud/cloud_gpus_fullstack.csv"],
        Asked(day="2025-03-07", skip_unusable=True, providers=("AWS",)),
    )
    ours = {o.node_type: o.usd_per_hour for o in files.read_prices(SNAPSHOT).offers}
    theirs = {o.node_type: o.usd_per_hour for o in full.offers}
    both = {n for n in ours if n in theirs}
    assert {"g4dn.xlarge", "p3.2xlarge"} <= both
    assert ours["g4dn.xlarge"] == pytest.approx(theirs["g4dn.xlarge"], abs=0.005)
    assert ours["p3.2xlarge"] == pytest.approx(theirs["p3.2xlarge"], abs=0.005)


# --- The command line -------------------------------------------------------------------------------------------------


def test_import_prices_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prices.yaml"
    sample = str(SAMPLES / "skypilot_lambda_vms.csv")
    assert run(["import", "prices", "skypilot", sample, "--provider", "lambda", "-o", str(out)]) == 2
    assert "give --date" in capsys.readouterr().err
    asked = ["--provider", "lambda", "--date", "2026-11-01", "--accelerator", "A6000", "--market", "on_demand"]
    assert run(["import", "prices", "skypilot", sample, *asked, "-o", str(out)]) == 0
    assert "2 offers" in capsys.readouterr().err
    assert {o.accelerator for o in files.read_prices(out).offers} == {"A6000"}
    assert run(["import", "prices", "skypilot", sample, *asked[:4], "--accelerator", "a100"]) == 2
    assert "which one: A100-40GB or A100-80GB" in capsys.readouterr().err
    assert (
        run(["import", "prices", "skypilot", sample, *asked[:4], "--accelerator", "a100-sxm-40gb", "-o", str(out)]) == 0
    )
    assert run(["import", "prices", "nosuch", sample]) == 2
    assert "known: cloud-vm" in capsys.readouterr().err


def test_prices_are_listed_with_their_age(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", str(SNAPSHOT), "--accelerator", "L4", "--sort", "price"]) == 0
    text = capsys.readouterr().out
    assert text.index("g2-standard-4-spot") < text.index("g6.xlarge")
    assert "2026-07-20" in text
    assert "[1] " in text
    assert "T4" not in text.replace("g4dn", "")
    assert run(["prices", str(SNAPSHOT), "--max-price-age", "1"]) == 2
    assert "days old" in capsys.readouterr().err
    assert run(["prices", str(SNAPSHOT), "--provider", "openai"]) == 0
    assert "gpt-4o-2024-08-06" in capsys.readouterr().out
    assert run(["prices", str(SNAPSHOT), "--region", "mars"]) == 2
    shutil.copy(ROOT / "cluster_configs/laptop.yaml", tmp_path / "fleet.yaml")
    assert run(["prices", str(tmp_path / "fleet.yaml")]) == 0


def test_a_plan_gate_sees_old_hosted_prices(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"kind": "prices", "version": 1}))
    with pytest.raises(InvalidInput, match="at least one offer"):
        files.read_prices(path)

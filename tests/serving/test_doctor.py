"""What the doctor says about a healthy cluster, a sick one, and no cluster at all."""

from __future__ import annotations

from coe.serving.doctor import REQUIRED, DoctorReport, NodeReport, _findings_here, _findings_there, examine
from coe.serving.labels import SERVE_ENV

HERE = {"python": "3.12.1", "ray": "2.60.0", "coe": "1.0"}


def node(**changes: object) -> NodeReport:
    keys: dict[str, object] = {
        "node_type": "t4",
        "address": "10.0.0.1",
        "is_head": False,
        "cpus": 4.0,
        "gpus": 1.0,
        "accelerators": ("T4",),
        "cpu_share": None,
        "versions": HERE,
        "missing_settings": (),
    }
    return NodeReport.model_validate({**keys, **changes})


def test_without_a_cluster_it_speaks_of_this_machine() -> None:
    report = examine()
    assert report.nodes == ()
    assert set(REQUIRED) < set(report.versions)
    assert "cluster   none looked at" in report.text
    assert report.is_healthy


def test_the_local_cluster_is_healthy(ray_session: str) -> None:
    report = examine(ray_session)
    assert report.is_healthy, report.text
    by_type = {n.node_type: n for n in report.nodes}
    assert set(by_type) == {"router", "t4", "a100"}
    assert by_type["router"].is_head
    assert by_type["t4"].cpu_share == "0.2"
    assert by_type["a100"].accelerators == ("A100",)
    assert by_type["t4"].missing_settings == ()
    assert "1 × t4: 2 CPUs, 1 × T4, simulated by 0.2 of a core each" in report.text
    assert DoctorReport.model_validate_json(report.model_dump_json()) == report


def test_missing_settings_labels_and_versions_are_problems() -> None:
    setting = "RAY_SERVE_THROUGHPUT_OPTIMIZED"
    sick = (
        node(missing_settings=(setting,)),
        node(node_type="", address="10.0.0.2"),
        node(node_type="silent", versions={}, missing_settings=tuple(SERVE_ENV)),
        node(node_type="old", versions={**HERE, "ray": "2.50.0"}),
    )
    texts = [f"{f.text}; {f.remedy}" for f in _findings_there(sick, HERE)]
    for part in (
        "1 node (10.0.0.2) without the label coe.dev/node-type",
        "1 node (silent) did not run a task",
        f"2 nodes (t4, silent) started without {setting}",
        f"set {setting}=1 before `ray start`",
        "1 node (old) run ray 2.50.0, this machine 2.60.0",
    ):
        assert any(part in text for text in texts), part


def test_a_head_alone_cannot_host_members() -> None:
    findings = _findings_there((node(node_type="router", is_head=True, gpus=0.0, accelerators=()),), HERE)
    assert [f.text for f in findings] == ["no node beside the head can host members"]


def test_missing_extras_are_hints() -> None:
    (hint,) = _findings_here({"torch": "2.5", "safetensors": "1", "scikit-learn": "1", "matplotlib": "missing"})
    assert hint.level == "hint"
    assert hint.remedy == "pip install 'coe[report]'"

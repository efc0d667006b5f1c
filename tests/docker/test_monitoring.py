"""Prometheus and Grafana: they fit together, and the dashboard asks for metrics that the server has."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from headway.engine.messages import ModelInfo, PrefillUsage, SelectionUsage, Stats
from headway.server.metrics import Metrics


class IdleEngine:
    """An engine with nothing to do."""

    info = ModelInfo(
        name="needle",
        max_context=1,
        vocab_size=1,
        eos_token_ids=(),
        dtype="float32",
        device="cpu",
        num_pages=1,
        page_size=64,
        plan="",
    )

    def stats(self) -> Stats:
        """All counters at zero."""
        return Stats()


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Sample name → label names, of everything that a server exposes after one request."""
    metrics = Metrics(IdleEngine(), "needle")
    metrics.finished("stop")
    metrics.selected(SelectionUsage(method="quest"))
    metrics.prefilled(PrefillUsage(method="streaming"))
    metrics.answered("/health", 200)
    families = text_string_to_metric_families(metrics.expose().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.fixture(scope="module")
def dashboard(docker: Path) -> dict[str, Any]:
    """The dashboard."""
    return json.loads((docker / "grafana" / "dashboards" / "headway.json").read_text(encoding="utf-8"))


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """Every query of the dashboard."""
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_metric_of_the_dashboard_exists(
    dashboard: dict[str, Any], exposed: dict[str, set[str]]
) -> None:
    asked = {name for expr in expressions(dashboard) for name in re.findall(r"\b\w+:\w+", expr)}
    assert len(asked) >= 10
    assert asked <= set(exposed)


def test_every_label_of_the_dashboard_exists(dashboard: dict[str, Any], exposed: dict[str, set[str]]) -> None:
    for expr in expressions(dashboard):
        for labels, name in re.findall(r"by \((\w+)\) \(rate\(([\w:]+)\[", expr):
            assert labels in exposed[name], expr


def test_parentheses_of_the_queries_match(dashboard: dict[str, Any]) -> None:
    for expr in expressions(dashboard):
        depths = list(itertools.accumulate((c in "([") - (c in ")]") for c in expr))
        assert min(depths) >= 0, expr
        assert depths[-1] == 0, expr


def test_panels_are_distinct_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_asks_the_provisioned_source(dashboard: dict[str, Any], docker: Path) -> None:
    folder = docker / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    asked = {panel["datasource"]["uid"] for panel in dashboard["panels"]}
    asked |= {target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel["targets"]}
    assert asked == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


def test_grafana_finds_the_dashboard(compose: dict[str, Any], docker: Path) -> None:
    folder = docker / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "headway.yaml").read_text())["providers"]
    mounted = dict(volume.split(":")[1::-1] for volume in compose["services"]["grafana"]["volumes"])
    assert (docker / mounted[provider["options"]["path"]] / "headway.json").is_file()
    assert (docker / mounted["/etc/grafana/provisioning"]).samefile(folder)


def test_prometheus_scrapes_the_server_with_its_key(compose: dict[str, Any], docker: Path) -> None:
    config = yaml.safe_load((docker / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (static,) = job["static_configs"]
    host, port = static["targets"][0].split(":")
    services = compose["services"]
    for name in ("headway-cpu", "headway-gpu"):
        assert services[name]["networks"]["default"]["aliases"] == [host]
        assert services[name]["ports"][0].endswith(f":{port}")
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in services["prometheus"]["secrets"]


def test_every_metric_is_documented(exposed: dict[str, set[str]], root: Path) -> None:
    text = (root / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`((?:vllm|headway):\w+)`", text))
    families = {
        re.sub("_(?:bucket|count|sum)$", "", name) for name in exposed if not name.endswith("_created")
    }
    assert families == documented

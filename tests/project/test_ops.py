"""The files in `ops/`: an alert on a metric that does not exist never fires, unnoticed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from streamer import settings
from streamer.errors import CloseCode
from streamer.settings import Settings
from streamer.storage import seed
from tests.conftest import Serve
from tests.support.apps import SECRET, CustomerApp, VendorApp, circle
from tests.support.commands import command, runs
from tests.support.paths import ROOT

RUNBOOK = (ROOT / "docs/runbook.md").read_text()
ALERTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "ops/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "ops/grafana/streamer.json").read_text())
UNITS = sorted((ROOT / "ops/systemd").iterdir())
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())

OTHERS = {"up", "job", "instance"}
NAME = re.compile(r"\b(?:streamer|process|python)_[a-z_]+\b|\bup\b")
SELECTOR = re.compile(r"([a-z_]+)\{([^}]*)\}")
GROUPED = re.compile(r"\bby \(([^)]*)\)")


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression, and where it stands."""
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"].removeprefix("label_values(").partition(",")[0]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


async def test_every_name_and_label_is_exported(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """By a server that has served: names, and the labels that are selected and grouped by."""
    vendor = (await seed.seed(database_url, 1))[0]
    running = await serve(backup_dir=tmp_path, alert_key=SECRET)
    async with CustomerApp(running.url) as customer, VendorApp(running.url, vendor.clerk_id) as app:
        await customer.watch("w", circle(52, 21, 1000))
        await app.ping(52, 21)
        await app.send({"type": "ping", "lat": 95, "long": 21})
        await app.send(b"no JSON")
        await app.expect("error")
        await app.acked(2)
    await running.server.health.condition.result()
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.get(f"{running.url}/metrics") as response:
                text = await response.text()
    names: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    told = list(expressions())
    assert len(told) > 50
    for where, expression in told:
        assert expression.count("(") == expression.count(")"), where
        used = NAME.findall(expression)
        assert used, f"{where} looks at nothing: {expression}"
        for name in used:
            assert name in names, f"{where}: {name} is not exported"
        labels = set().union(*(names[name] for name in used)) | OTHERS
        for name, selectors in SELECTOR.findall(expression):
            asked = set(re.findall(r"(\w+)\s*[=!]", selectors))
            assert asked <= names[name] | OTHERS, f"{where}: {name} has no label {asked - names[name]}"
        for grouped in GROUPED.findall(expression):
            asked = {label.strip() for label in grouped.split(",")}
            assert asked <= labels, f"{where}: there is no label {asked - labels}"


def test_every_alert_has_a_remedy() -> None:
    """A name, a severity, one sentence, and a part of the runbook."""
    assert len(ALERTS) > 20
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert re.fullmatch(r"\d+[smh]", rule["for"]), name
        assert rule["annotations"]["summary"], name
        assert rule["annotations"]["description"].endswith("."), name
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        part = re.search(rf"^### {name}\n(.+?)(?=^##)", RUNBOOK, re.M | re.S)
        assert part is not None, f"{name} is not in the runbook"
        assert len(part[1].split()) > 10, f"{name}: what to look at?"
    assert set(re.findall(r"^### (\w+)$", RUNBOOK, re.M)) == {rule["alert"] for rule in ALERTS}


def test_every_close_code_is_explained() -> None:
    """Whoever sees one on the dashboard finds it in the runbook."""
    told = {code for line in re.findall(r"^\| ([\d, ]+) \|", RUNBOOK, re.M) for code in line.split(", ")}
    assert told == {str(int(code)) for code in CloseCode} | {"1005", "1006"}


def test_the_runbook_names_only_existing_settings_commands_and_metrics() -> None:
    """Settings, commands and metrics: a command that does not exist is no help at three in the morning."""
    known = {settings.variable(name) for name in Settings.model_fields}
    for page in ("docs/runbook.md", "docs/operating.md", "ops/README.md"):
        text = (ROOT / page).read_text()
        assert set(re.findall(r"\bSTREAMER_[A-Z_]+\b|\bDATABASE_URL\b|\bREDIS_URL\b", text)) <= known, page
        for words in re.findall(r"`streamer ((?:db )?[a-z-]+)", text):
            assert command(words.split()), f"{page}: streamer {words} is no command"


def test_units_run_commands_that_there_are() -> None:
    """A timer for a command with a misspelt option fails every night."""
    started = []
    for unit in UNITS:
        for line in re.findall(r"^Exec\w+=(.*)$", unit.read_text(), re.M):
            assert line.startswith("/opt/streamer/bin/streamer "), unit
            runs(line)
            started.append(line)
        if unit.suffix == ".timer":
            assert unit.with_suffix(".service").exists()
    assert len(started) == 8


def test_the_server_does_not_have_the_owners_credentials() -> None:
    """A server that is broken into must not be able to drop tables: units, composition and pods keep the two apart."""
    for unit in UNITS:
        text = unit.read_text()
        files = re.findall(r"^EnvironmentFile=(.*)$", text, re.M)
        serving = "streamer serve" in text or "streamer mqtt" in text
        assert files == ([] if unit.suffix == ".timer" else [f"/etc/streamer/{'streamer' if serving else 'owner'}.env"])
        if files:
            assert f"User={'streamer' if serving else 'streamer-owner'}\n" in text
    services = COMPOSE["services"]
    assert services["streamer"]["environment"]["DATABASE_URL"].startswith("postgresql://streamer:")
    for name in ("migrate", "grant", "upkeep"):
        assert services[name]["environment"]["DATABASE_URL"].startswith("postgresql://venta:")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_units_are_valid() -> None:
    """systemd itself reads them; that /opt/streamer is not on this machine is no fault of theirs."""
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, UNITS)], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if str(ROOT) in line or "streamer" in line]
    assert [line for line in said if "/opt/streamer/bin/streamer is not executable" not in line] == []


def test_every_alert_has_a_test() -> None:
    """An expression that promtool never evaluated may be one that never fires."""
    cases = yaml.safe_load((ROOT / "ops/prometheus/alerts.test.yml").read_text())["tests"]
    fired = {test["alertname"] for case in cases for test in case["alert_rule_test"] if test.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in ALERTS}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here")
def test_rules_are_valid() -> None:
    """Prometheus itself reads them, and they fire when they should and not when they should not."""
    folder = ROOT / "ops/prometheus"
    for *words, name in (
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts.test.yml"),
    ):
        command = ["promtool", *words, str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_composition() -> None:
    """Ours: commands and settings that there are, read-only, without rights, migrated before it serves."""
    services = COMPOSE["services"]
    known = {settings.variable(name) for name in Settings.model_fields}
    for name in ("migrate", "grant", "upkeep", "streamer"):
        service = services[name]
        assert set(service["environment"]) <= known, name
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for name in ("migrate", "grant"):
        runs(" ".join(services[name]["command"]))
    for line in services["upkeep"]["command"][-1].splitlines():
        if "streamer" in line:
            runs(line.strip())
    done = {"condition": "service_completed_successfully"}
    assert services["grant"]["depends_on"]["migrate"] == done
    assert services["streamer"]["depends_on"]["grant"] == done
    assert services["streamer"]["environment"]["STREAMER_BACKUP_DIR"] == "/backups"
    for name in ("postgres", "valkey"):
        assert services[name]["healthcheck"]["test"][0] == "CMD"
        assert services["streamer"]["depends_on"][name] == {"condition": "service_healthy"}
    graces = [service["stop_grace_period"] for service in (services["streamer"], services["postgres"])]
    assert all(int(grace.removesuffix("s")) > Settings.model_fields["drain_timeout"].default for grace in graces)


def test_it_starts_where_nothing_can_be_written() -> None:
    """A read-only container without even a /tmp: no part may want a temporary folder before it is asked to do so."""
    code = """
import sys, tempfile
def none(*_): raise FileNotFoundError("No usable temporary directory found")
tempfile._get_default_tempdir = none
sys.argv = ["streamer", "config"]
from streamer.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "STREAMER_PORT" in done.stdout


def test_the_image() -> None:
    """Two stages, a user without rights, no secret, and a health check."""
    text = (ROOT / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+)", text, re.M)
    assert stages == ["python:3.13-slim", "python:3.13-slim", "runtime", "runtime"]
    assert len(re.findall(r"^USER 10001:10001$", text, re.M)) == 2
    assert "HEALTHCHECK" in text
    assert "/livez" in text
    assert "--require-hashes" in text
    runs(" ".join(json.loads(re.findall(r"^CMD (\[.*\])$", text, re.M)[-1])))
    assert not re.search(r"(PASSWORD|SECRET|TOKEN)\s*=", text)

"""Every module with rules has a test file of its name, so that its tests are easy to find."""

from __future__ import annotations

from tests.support.paths import ROOT

ELSEWHERE = {
    # tested through the commands that an operator types
    "e2e/test_app": "streamer.lifecycle",
    "e2e/cli/test_main": "streamer.cli.config cli.db cli.dev cli.link cli.process cli.redis cli.serve cli.token",
    "loadtest/test_cli": "loadtest.options",
    # parts of one thing that is tested as a whole
    "e2e/test_privacy": "streamer.accounts.permissions",
    "integration/operations/test_privacy": "streamer.broker.erasure",
    "e2e/web/test_sign_in": "streamer.web.backends",
    "e2e/cli/test_doctor": "streamer.broker.diagnose",
    "integration/broker/test_publisher": "streamer.broker.flush",
    "integration/broker/test_redis_cluster": "streamer.broker.redis_connections broker.redis_node",
    "integration/broker/test_broker": "streamer.broker.subscriptions",
    "integration/dev/test_development": "streamer.dev.folder dev.simulate",
    "clients/test_conformance": "streamer.dev.conformance.program dev.conformance.script dev.conformance.server",
    "unit/live/test_index": "streamer.live.cell live.vendor_index live.view live.watch",
    "e2e/operations/test_health": "streamer.operations.parts",
    "integration/operations/test_embedded": (
        "streamer.operations.embedded.postgres operations.embedded.programs operations.embedded.server"
        " operations.embedded.valkey"
    ),
    "e2e/operations/test_workers": (
        "streamer.operations.workers.manager operations.workers.peers operations.workers.scoreboard"
    ),
    "e2e/web/test_api_docs": "streamer.protocol.asyncapi protocol.openapi protocol.schemas",
    "integration/operations/test_backup": (
        "streamer.operations.backup.archive operations.backup.files operations.backup.streams"
    ),
    "integration/storage/test_store": "streamer.storage.database storage.ping_writer",
    "integration/storage/test_adopt": "streamer.storage.adopt_sql",
    "integration/storage/test_migrate": "streamer.storage.drift storage.revisions",
    "e2e/transport/test_websocket": (
        "streamer.transport.connection transport.identify transport.vendor_socket transport.watch_socket"
        " transport.websocket_server"
    ),
    "e2e/transport/test_hostile": "streamer.transport.admission transport.problem",
    "e2e/transport/test_http_query": "streamer.transport.http_ingest transport.query",
    "e2e/transport/test_cost": "streamer.transport.watch_budget",
    "loadtest/test_alerts": "loadtest.engine.alert_auditor",
    "loadtest/test_fleet": "loadtest.clients.customer engine.population",
    "loadtest/test_run": "loadtest.engine.worker engine.worker_pool",
    "loadtest/test_reports": "loadtest.reports.html",
    "unit/alerts/test_tracker": "streamer.alerts.alert alerts.evaluator",
    "unit/transport/test_mqtt": "streamer.transport.aiomqtt_compat transport.mqtt_url",
    "unit/storage/test_sql": "streamer.storage.queries storage.alert_sql",
}
"""Test files and the modules that they test besides the one of their name."""
DECLARATIONS = {
    *("streamer.broker.context", "streamer.clocks", "streamer.errors"),
    *("streamer.protocol.bounds", "streamer.transport.services"),
}
"""Modules without rules: constants, exceptions and dataclasses."""


def test_every_module_with_rules_has_a_test_file() -> None:
    """Otherwise a module has no tests, or tests in a file with another name."""
    names = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    listed = set(DECLARATIONS)
    for file, tested in ELSEWHERE.items():
        assert (ROOT / "tests" / f"{file}.py").is_file(), file
        package = tested.partition(".")[0]
        listed |= {f"{package}.{module.removeprefix(f'{package}.')}" for module in tested.split()}
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.stem
        for package in ("streamer", "loadtest")
        for path in (ROOT / package).rglob("*.py")
        if not path.stem.startswith("__")
    }
    without = {module for module, name in modules.items() if f"test_{name}" not in names}
    assert without <= listed, f"write test files for {sorted(without - listed)}, or name theirs in ELSEWHERE"
    assert listed <= modules.keys(), f"{sorted(listed - modules.keys())} are gone: take them out of ELSEWHERE"

"""Alerts: watches without a connection, whose events go out as signed webhooks."""

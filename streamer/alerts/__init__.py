"""Alerts: watches without a connection, whose events are sent as signed webhooks."""

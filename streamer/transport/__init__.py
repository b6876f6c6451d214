"""The aiohttp edge: WebSockets, event streams, HTTP."""

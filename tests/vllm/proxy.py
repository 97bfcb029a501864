"""A proxy on loopback that loses a share of what passes: before the server saw it, after it answered, or halfway."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp import web

SESSION = web.AppKey("session", aiohttp.ClientSession)
FAULTS = ("429", "503", "reset before", "reset after", "half")


class Proxy:
    """Where it is, and what it did."""

    def __init__(self, target: str, share: float, seed: int):
        self.url = ""
        self.faults: Counter[str] = Counter()
        self.passed = 0
        self._target, self._share, self._random = target, share, random.Random(seed)

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        faulty = request.path.endswith("/completions") and self._random.random() < self._share
        fault = self._random.choice(FAULTS) if faulty else None
        if fault is not None:
            self.faults[fault] += 1
        assert request.transport is not None
        if fault == "reset before":
            request.transport.abort()
            return web.Response()
        if fault in ("429", "503"):
            return web.Response(status=int(fault), text="not now")
        data = await request.read()
        headers = {"Content-Type": "application/json"}
        url = self._target + request.path
        async with request.app[SESSION].request(request.method, url, data=data, headers=headers) as response:
            body = await response.read()
        if fault == "reset after":
            request.transport.abort()
            return web.Response()
        if fault == "half":
            half = web.StreamResponse(headers={"Content-Length": str(len(body)), **headers})
            await half.prepare(request)
            await half.write(body[: len(body) // 2])
            request.transport.close()
            return half
        self.passed += request.path.endswith("/completions")
        return web.Response(body=body, status=response.status, headers=headers)


@contextmanager
def faulty_proxy(target: str, share: float, seed: int) -> Iterator[Proxy]:
    """A proxy in front of `target` (up to `/v1`), for as long as the block lasts."""
    proxy, loop = Proxy(target.removesuffix("/v1"), share, seed), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app[SESSION] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        app.router.add_route("*", "/{path:.*}", proxy.pass_on)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        assert runner.app is not None
        asyncio.run_coroutine_threadsafe(runner.app[SESSION].close(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

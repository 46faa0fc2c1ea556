"""A collector that takes every trace and keeps none: `python -m bench.collector PORT`."""

from __future__ import annotations

import sys

import uvicorn


async def app(_scope, receive, send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), lifespan="off", log_level="error", access_log=False, loop="uvloop", http="httptools")

"""The metrics port: what people and Prometheus look at. A Starlette application, imported only when it is served."""

from html import escape

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from efserve import __version__
from efserve.frontend.metrics import HostCollector, expose
from efserve.frontend.service import Service

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>efserve</title>
<style>body{{font:15px system-ui;margin:2em}}td,th{{text-align:left;padding:.2em 1.2em .2em 0}}</style></head>
<body><h1>efserve {version}</h1>
<table><tr><th>model</th><th>version</th><th>state</th><th>reason</th></tr>
{rows}</table>
<p><a href="/metrics">metrics</a></p></body></html>
"""


def create_app(service: Service) -> Starlette:
    """The application over one service."""
    host = HostCollector()

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(expose(service, host), headers={"content-type": METRICS_TYPE})

    async def index(request: Request) -> Response:
        rows = [
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in (e.name, e.version, e.state, e.reason)) + "</tr>"
            for e in service.index(only_ready=False)
        ]
        return HTMLResponse(_PAGE.format(version=__version__, rows="\n".join(rows)))

    return Starlette(routes=[Route("/metrics", metrics), Route("/", index)])

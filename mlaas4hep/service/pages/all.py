"""All pages of an application."""

from __future__ import annotations

from fastapi import FastAPI

from mlaas4hep.service.pages import admin, assets, home, jobs, models, workspaces
from mlaas4hep.service.pages.site import UI, page_router
from mlaas4hep.service.problems import Problem

_nothing = page_router()


@_nothing.get(UI + "/{path:path}")
def nothing(path: str) -> None:
    """What is no page."""
    raise Problem(404, "There is no such page.")


def add_pages(app: FastAPI) -> None:
    """Add the pages to the service's application, after the routes of its login."""
    for module in (assets, home, workspaces, jobs, models, admin):
        app.include_router(module.router)
    app.include_router(_nothing)


def is_page(path: str) -> bool:
    """Whether a path is one of the pages."""
    return path == "/" or path.startswith(f"{UI}/")

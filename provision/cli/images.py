"""`provision image build, list, delete`: images with all that the roles install, so that a creation is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from provision.cli.context import console, home
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.clouds._baked import BakedImage

_CLOUD = typer.Option("local", "--cloud", help="local, or NAME[/REGION] of clouds.yaml.")
_YES = typer.Option(False, "--yes", "-y", help="Do not ask.")
_JSON = typer.Option(False, "--json", help="Print JSON on standard output.")

app = typer.Typer(name="image", help="Images with all that a platform needs, of which `create` makes it in a minute.")


@app.command()
def build(
    cloud: str = _CLOUD,
    gpu: bool = typer.Option(False, "--gpu", help="For platforms with GPUs."),
    framework: list[str] | None = typer.Option(
        None, metavar="NAME|WHEEL", help="As for `create`: torch, or wheels. May be repeated."
    ),
    mlaas4hep: str = typer.Option(
        "", metavar="VERSION|WHEEL", help="As for `create`: a release or a wheel.  [this toolkit's]"
    ),
    yes: bool = _YES,
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be made and end."),
    as_json: bool = _JSON,
) -> None:
    """Make an image on a machine of this computer; for a cloud it is uploaded to the project, for its users only.

    `provision create` with the same --framework, --mlaas4hep and --gpu takes it by itself, for as long as roles and
    packages are the same.
    """
    from provision.clouds import open_cloud
    from provision.images import plan_image
    from provision.spec import make_spec

    wishes = make_spec(
        {"name": "any", "gpu": "any" if gpu else None, "frameworks": framework or [], "mlaas4hep": mlaas4hep}
    )
    out = console()
    baking = plan_image(wishes, open_cloud(cloud, home()).images(), home())
    present = baking.present
    if present or dry_run:
        out.emit(_row(present or baking.image)) if as_json else out.data(f"{baking.image.name}: {baking.image}")
        out.say(f"It is {baking.images.place} already." if present else "Nothing was made.")
        return
    out.say(f"{baking.image.name}: {baking.image}, to be {baking.images.place}")
    out.say("It is made on a machine of this computer, which takes some minutes and several gigabytes of disk.")
    if not yes and not out.confirm("Make this image?"):
        raise UsageError("Nothing was made.", "Answer y, or give --yes where there is no terminal.")
    made = baking.bake(out)
    out.emit(_row(made)) if as_json else out.data(made.name)


@app.command("list")
def list_images(cloud: str = _CLOUD, as_json: bool = _JSON) -> None:
    """Show the images, and whether a creation with the same wishes would take them now."""
    from provision.clouds import open_cloud

    out = console()
    images = open_cloud(cloud, home()).images()
    rows = [_row(image) for image in images.all()]
    if as_json:
        out.emit(rows)
    elif rows:
        out.table([*rows[0]], [list(row.values()) for row in rows])
    else:
        out.say(f"There is no baked image {images.place}.")


@app.command()
def delete(
    name: str = typer.Argument(help="Name of the image."),
    cloud: str = _CLOUD,
    yes: bool = _YES,
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be removed and end."),
) -> None:
    """Remove an image; platforms that were made of it stay as they are."""
    from provision.clouds import open_cloud

    out = console()
    images = open_cloud(cloud, home()).images()
    image = images.named(name)
    if dry_run:
        out.data(f"{image.name}: {image}, {image.size / 2**30:.1f} GB")
        return
    if not yes and not out.confirm(f"Remove the image {name} {images.place}?"):
        raise UsageError("Nothing was removed.", "Answer y, or give --yes where there is no terminal.")
    images.remove(image)
    out.say(f"{name} is gone.")


def _row(image: BakedImage) -> dict[str, Any]:
    from provision.images import is_current

    return {
        "name": image.name,
        "has": str(image),
        "made": f"{image.created_at:%Y-%m-%d %H:%M}",
        "toolkit": image.toolkit,
        "GB": round(image.size / 2**30, 1),
        "serves": "yes" if is_current(image, home()) else "no",
        "digest": image.digest,
    }


def register(parent: typer.Typer) -> None:
    """Add the group of commands."""
    parent.add_typer(app)

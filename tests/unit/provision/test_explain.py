"""The plan as a script: what the cloud or the user has named cannot become a command."""

from __future__ import annotations

import subprocess
from pathlib import Path

from provision.clouds._explain import Subject, script
from provision.clouds._making import FAMILIES, rules, user_data
from provision.clouds.base import Platform, Step
from provision.record import Folder, Record, Resource
from provision.spec import make_spec

HOSTILE = "$(touch hacked)`touch hacked`'; touch hacked; \"\ntouch hacked\n"


def resource() -> Resource:
    return Resource(kind="none", id="none")


def test_hostile_names_stay_words(tmp_path: Path):
    spec = make_spec(
        {"name": "higgs", "cloud": HOSTILE, "image": HOSTILE, "jump": "ada@gate:2222", "ports": [8080], "workers": 1}
    )
    record = Record(name="higgs", uid="0123456789", owner=HOSTILE, toolkit="0", spec=spec, facts={"image": HOSTILE})
    platform = Platform(record, Folder(tmp_path))
    values = dict.fromkeys(("flavor", "worker_flavor", "image", "network", "external", "gateway", "volume"), HOSTILE)
    keys = ["keypair", "security-group", "router", "data-volume", "server", "volume-attachment", "floating-ip", "ssh"]
    steps = [
        Step(key, key, 1, resource, resource)
        for key in (*keys, "host-key", "worker-1", "worker-1-ssh", "worker-1-host-key", "configure")
    ]
    subject = Subject(
        platform,
        values,
        record.facts,
        HOSTILE,
        HOSTILE,
        HOSTILE,
        HOSTILE,
        rules(spec),
        FAMILIES,
        "10.0.0.0/24",
        user_data,
    )
    text = script(subject, steps)
    for number, step in enumerate(steps, start=1):
        assert f"\n# {number}. {step.title}\n" in text
    assert 'openstack server add volume "$server" "$volume"' in text
    assert "--dst-port 8080" in text and "ada@gate:2222" in text
    # programs that only print: whatever the shell would run by itself shows as a file
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("openstack", "ssh", "ssh-keygen", "oidc-token"):
        (programs / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (programs / name).chmod(0o755)
    (programs / "ssh-keygen").write_text('#!/bin/sh\nfor file; do :; done\ntouch "$file" "$file.pub"\n')
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["sh"],
        input=text,
        cwd=work,
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(work.rglob("hacked"))
    assert {path.stat().st_mode & 0o077 for path in work.rglob("*")} == {0}

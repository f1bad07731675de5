"""The installer of the role `mlaas4hep` reaches packages as the machine's pip is told to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

VARIABLES = Path(__file__).parents[3] / "roles/mlaas4hep/vars/main.yml"
# as `pip config list` prints them
TOLD = r"""
:env:.cert='/etc/ssl/certs/ca-certificates.crt'
global.extra-index-url='https://one.example/simple\nhttps://other.example/simple'
global.find-links='/wheels https://wheels.example'
global.index-url='https://user:word@index.example/simple'
global.trusted-host='one.example other.example'
install.timeout='30'
"""


def reach(folder: Path, told: str) -> dict[str, str]:
    """The installer's environment, by the role's own variables."""
    copy = {"content": "{{ __mlaas4hep_reach | to_json }}", "dest": str(folder / "reach"), "mode": "0600"}
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(VARIABLES)],
        "vars": {"__mlaas4hep_pip": {"stdout": told}, "ansible_python_interpreter": sys.executable},
        "tasks": [{"ansible.builtin.copy": copy}],
    }
    (folder / "play.yml").write_text(json.dumps([play]))
    program = Path(sys.executable).with_name("ansible-playbook")
    words = [program, "--inventory", "localhost,", "--connection", "local", folder / "play.yml"]
    subprocess.run(words, check=True, capture_output=True)
    found: dict[str, str] = json.loads((folder / "reach").read_text())
    return found


def test_settings_of_pip_are_those_of_the_installer(tmp_path: Path):
    assert reach(tmp_path, TOLD) == {
        "UV_DEFAULT_INDEX": "https://user:word@index.example/simple",
        "UV_INDEX": "https://one.example/simple https://other.example/simple",
        "UV_FIND_LINKS": "/wheels,https://wheels.example",
        "UV_INSECURE_HOST": "one.example other.example",
        "UV_NO_INDEX": "",
        "UV_HTTP_TIMEOUT": "30",
    }


def test_without_settings_the_installer_has_none(tmp_path: Path):
    assert {name for name, value in reach(tmp_path, "").items() if value} == {"UV_HTTP_TIMEOUT"}

"""Requests made up from the OpenAPI document: none makes the service fail."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from tests.unit.mlaas4hep.service_parts import ROOT, WORKFLOW, ended, running, submit, tar_gz, upload

SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)


schemathesis.openapi.media_type("application/gzip", st.one_of(st.binary(), st.just(tar_gz(WORKFLOW))))

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")


def test_no_request_makes_the_service_fail(bubblewrap, tmp_path):
    with running(tmp_path, "true") as service:
        client = service.client(ROOT)
        upload(client)
        ended(client, submit(client)["id"])
        schema = schemathesis.openapi.from_url(f"{service.url}/api/v1/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) > 30
        for operation in operations:

            @SETTINGS
            @given(case=operation.as_strategy())
            def check(case):
                answer = case.call(headers={"Authorization": "Bearer root"}, timeout=60)
                case.validate_response(answer, checks=[not_a_server_error])

            check()

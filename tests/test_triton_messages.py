"""Triton's messages without gRPC, in processes of their own: what was imported before is part of the case."""

import subprocess
import sys

import pytest


def said(script: str) -> str:
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def test_a_server_imports_no_grpc() -> None:
    script = (
        "import sys, efserve.server.run, efserve.frontend.grpc; print({'grpc', 'tritonclient.grpc'} & {*sys.modules})"
    )
    assert said(script) == "set()"


@pytest.mark.parametrize("first", ["efserve.triton_service", "tritonclient.grpc"])
def test_the_package_and_we_have_the_same_messages(first: str) -> None:
    """A second copy would be refused by protobuf, or make messages that are not equal to the other's."""
    script = (
        f"import {first}\n"
        "import tritonclient.grpc as client\n"
        "from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc\n"
        "from efserve import triton_messages, triton_service\n"
        "assert triton_messages.model_config_pb2 is model_config_pb2\n"
        "assert triton_service.service_pb2 is service_pb2\n"
        "assert service_pb2_grpc.grpc__service__pb2 is service_pb2\n"
        "print(client.InferInput('x', [1], 'FP32').name())\n"
    )
    assert said(script) == "x"

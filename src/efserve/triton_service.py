"""The messages of Triton's gRPC service, which a server without gRPC does not need."""

from efserve.triton_messages import load

service_pb2 = load("service_pb2")

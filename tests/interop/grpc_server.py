"""A gRPC service as an application writes it: `grpc_server.py NAME PORT`.

Knows no message types: requests and answers are bytes. `/interop.Echo/Name` answers with NAME;
`/interop.Echo/Flaky` fails the first `x-failures` calls of each `x-id` and then answers with the
number of calls that it took.
"""

import collections
import concurrent.futures
import sys

import grpc

name, port = sys.argv[1:]
calls = collections.Counter()


def answer(request, context):
    return name.encode()


def flaky(request, context):
    metadata = dict(context.invocation_metadata())
    call = metadata["x-id"]
    calls[call] += 1
    if calls[call] <= int(metadata["x-failures"]):
        context.abort(grpc.StatusCode.UNAVAILABLE, "asked to fail")
    return str(calls[call]).encode()


server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=8))
methods = {"Name": answer, "Flaky": flaky}
handlers = {method: grpc.unary_unary_rpc_method_handler(run) for method, run in methods.items()}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("interop.Echo", handlers)])
if server.add_insecure_port(f"[::]:{port}") != int(port):
    sys.exit(f"port {port} is taken")
server.start()
print("ready", flush=True)
server.wait_for_termination()

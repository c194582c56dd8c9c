"""A real gRPC client and server: `serve PORT BYTES`, or `call ORDER` for a closed loop.

Messages are plain bytes, so that what is measured is gRPC and not a serialiser. `call` prints what
came back as the generator's answers; a wrong or failed answer ends it with an error.
"""

import asyncio
import json
import sys
import time

import grpc

METHOD = "/bench.v1.Echo/Unary"
# Of the client: microseconds are kept one by one.
CALLS_MAX = 2_000_000


async def serve(port, size):
    answer = b"y" * size

    async def unary(_request, _context):
        return answer

    service, method = METHOD.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(unary)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    if server.add_insecure_port(f"127.0.0.1:{port}") == 0:
        sys.exit(f"port {port} is taken")
    await server.start()
    await server.wait_for_termination()


async def call(order):
    options = [
        ("grpc.default_authority", order["authority"]),
        ("grpc.enable_http_proxy", 0),
        # Channels to one address share a connection otherwise.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    calls = order["load"]["grpcio"]
    message = b"x" * calls["request_bytes"]
    taken = []
    start = time.perf_counter()
    end = start + order["seconds"]

    async def one_after_another(unary):
        while True:
            began = time.perf_counter()
            answer = await unary(message, timeout=10)
            if len(answer) != calls["response_bytes"]:
                sys.exit(f"an answer has {len(answer)} bytes")
            ended = time.perf_counter()
            taken.append(round((ended - began) * 1e6))
            if ended >= end or len(taken) >= CALLS_MAX:
                return

    channels = [grpc.aio.insecure_channel(order["address"], options=options) for _ in range(calls["connections"])]
    try:
        loops = [one_after_another(channel.unary_unary(METHOD)) for channel in channels for _ in range(calls["streams"])]
        await asyncio.gather(*loops)
    except grpc.aio.AioRpcError as error:
        sys.exit(f"{error.code()}: {error.details()}")
    elapsed = time.perf_counter() - start
    for channel in channels:
        await channel.close()
    taken.sort()
    at = lambda share: taken[min(len(taken) - 1, int(len(taken) * share))]
    answers = {
        "count": len(taken),
        "bytes": len(taken) * (calls["request_bytes"] + calls["response_bytes"]),
        "elapsed_s": elapsed,
        "latency": {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999)},
    }
    print(json.dumps(answers))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port, size]:
            asyncio.run(serve(int(port), int(size)))
        case ["call", order]:
            asyncio.run(call(json.loads(order)))
        case _:
            sys.exit(__doc__)

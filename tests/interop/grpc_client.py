"""A gRPC client as an application writes it: `grpc_client.py TARGET`; its bootstrap file is in
GRPC_XDS_BOOTSTRAP.

Reads orders from standard input, one JSON object a line: `method`, `metadata`, `calls`, and `fresh`
for connections of their own. Makes the calls over one channel and prints how they ended as one JSON
object: `answers` by their text and `failures` by status and message.
"""

import collections
import json
import sys

import grpc
import grpc.experimental

SECONDS_MAX = 15


def main():
    with connect() as channel:
        for line in sys.stdin:
            order = json.loads(line)
            if order.get("fresh"):
                # Channels share connections unless told.
                with connect(("grpc.use_local_subchannel_pool", 1)) as fresh:
                    ended = obey(fresh, order)
            else:
                ended = obey(channel, order)
            print(json.dumps(ended), flush=True)


def connect(*options):
    # Plaintext only where the control plane says nothing of TLS.
    credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
    return grpc.secure_channel(sys.argv[1], credentials, options=options)


def obey(channel, order):
    call = channel.unary_unary("/interop.Echo/" + order["method"])
    metadata = tuple(order["metadata"].items())
    answers, failures = collections.Counter(), collections.Counter()
    for _ in range(order["calls"]):
        try:
            answers[call(b"", metadata=metadata, timeout=SECONDS_MAX).decode()] += 1
        except grpc.RpcError as error:
            failures[f"{error.code().name}: {error.details()}"] += 1
    return {"answers": answers, "failures": failures}


main()

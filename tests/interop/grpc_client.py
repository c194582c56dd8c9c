"""A gRPC client as an application writes it: `grpc_client.py TARGET`; its bootstrap file is in
GRPC_XDS_BOOTSTRAP.

Reads orders from standard input, one JSON object a line: `method`, `metadata`, `calls`. Makes the
calls over one channel and prints how they ended as one JSON object: `answers` by their text and
`failures` by status and message.
"""

import collections
import json
import sys

import grpc
import grpc.experimental

SECONDS_MAX = 15


def main():
    # Plaintext only where the control plane says nothing of TLS.
    credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
    with grpc.secure_channel(sys.argv[1], credentials) as channel:
        for line in sys.stdin:
            print(json.dumps(obey(channel, json.loads(line))), flush=True)


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

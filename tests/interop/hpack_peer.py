"""HPACK of another implementation, the `hpack` package: `hpack_peer.py`.

Reads orders from standard input, one JSON object a line, and prints an answer for each. All bytes
are in hexadecimal. `new` begins new connections, `size` says what the other end's table may hold
(of the encoder, and of the decoder), `encode` has fields as name, value and whether it is secret,
and `decode` has a block. Answers are `fields` or an `error`, `block`, or nothing.
"""

import json
import sys

import hpack


def main():
    encoder, decoder = fresh()
    for line in sys.stdin:
        order = json.loads(line)
        answer = {}
        if "new" in order:
            encoder, decoder = fresh()
        if "size" in order:
            encoder.header_table_size = order["size"]
            decoder.max_allowed_table_size = order["size"]
        if "encode" in order:
            answer["block"] = encoder.encode([field(*of) for of in order["encode"]]).hex()
        if "decode" in order:
            try:
                fields = decoder.decode(bytes.fromhex(order["decode"]), raw=True)
                answer["fields"] = [plain(field) for field in fields]
            except hpack.HPACKError as error:
                answer["error"] = str(error)
        print(json.dumps(answer), flush=True)


def fresh():
    return hpack.Encoder(), hpack.Decoder(max_header_list_size=2**32)


def field(name, value, secret):
    kind = hpack.NeverIndexedHeaderTuple if secret else hpack.HeaderTuple
    return kind(bytes.fromhex(name), bytes.fromhex(value))


def plain(field):
    name, value = field
    return name.hex(), value.hex(), isinstance(field, hpack.NeverIndexedHeaderTuple)


main()

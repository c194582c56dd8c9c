"""An OpenTelemetry collector's receiving end: `otlp_receiver.py PORT`. Checks that each span is
well formed and prints it as one JSON object."""

import concurrent.futures
import json
import sys

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        for resource in request.resource_spans:
            labels = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            assert labels["service.name"], "spans of nobody"
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                assert len(span.trace_id) == 16 and any(span.trace_id), "a trace id has 16 bytes"
                assert len(span.span_id) == 8 and any(span.span_id), "a span id has 8 bytes"
                assert len(span.parent_span_id) in (0, 8), "a parent's id has 8 bytes or none"
                assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano, "time runs forward"
                ids = {key: getattr(span, key).hex() for key in ("trace_id", "span_id", "parent_span_id")}
                line = json.dumps(ids | {"name": span.name, "kind": span.kind, "resource": labels})
                # In one piece: two sidecars may export at once, and print() writes its end apart.
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
        return trace_service_pb2.ExportTraceServiceResponse()


server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=2))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Receiver(), server)
server.add_insecure_port(f"[::]:{sys.argv[1]}")
server.start()
print("ready", flush=True)
server.wait_for_termination()

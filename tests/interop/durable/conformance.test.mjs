// The public suite of the Durable Streams protocol against the daemon at TOWPATH_URL.
import { runConformanceTests } from "@durable-streams/server-conformance-tests";
import { url } from "./api.mjs";

runConformanceTests({ baseUrl: url });

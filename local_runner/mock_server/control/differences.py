"""Every known difference from the service, by the door where it shows. Part of COVERAGE.md."""

from __future__ import annotations

DIFFERENCES: dict[str, tuple[str, ...]] = {
    "Everywhere": (
        "One workspace, one region, one storage account, two registry names for Microsoft's models.",
        "Tokens are checked for their signature and their end, not for their audience or for roles.",
        "Provider registration, role assignments and rate limits of the service itself are not modelled; "
        "quota, throttling and outages can be asked for at the control door.",
        "Long-running operations pace with `retry-after-ms`: azure-ai-ml reads Retry-After of a "
        "cancellation as a whole number.",
        "Texts of refusals are ours, except where a recording shows the service's; codes and forms follow "
        "the recordings.",
    ),
    "Jobs": (
        "No recording shows a completed job, or its run history: those shapes are ours, checked against "
        "what the SDKs accept.",
        "`services` of a new job is an object. The service answers null right after the PUT, and "
        "azure-ai-ml's `jobs.stream` dies of it.",
        "`rundata` lists no model among the outputs: azure-ai-ml 1.35's download crashes on one.",
        "Quality, duration and price are not the service's. The base that was really trained stands in the "
        "log, in the job's property `mockTrainedOn`, and in the model's; a simulated job says "
        "`mockSimulated: true`.",
        "Retirement is judged by the catalogue's date (`--as-of`, default 2025-06-01), not by today.",
        "Hyperparameters that the local engine cannot do (half precision on a CPU) are accepted, as by the "
        "service, and the job then fails with that reason.",
        "A job's name may be used again once the job is deleted (the service's rule is not recorded); the "
        "model that the first one registered stays.",
        "Managed compute is a name with a size: no node is started, and the job runs on this machine.",
        "Of pipeline jobs, those of the registry's chat-completion component run, as one fine-tuning run; "
        "evaluation steps write no scores.",
        "The MLflow tracking plane is not served.",
    ),
    "Models and endpoints": (
        "The registered model holds a PEFT adapter under `data/model/` and a small `MLmodel` file of our "
        "own flavour.",
        "Two bases are in memory at most, and a third takes the place of the one that was asked longest ago, "
        "as soon as nobody listens to it; an endpoint whose base is not loaded is still `Online`, and its "
        "next answer takes as long as loading does. Up to 32 questions to a base are answered at once, "
        "whatever their adapters; more wait. A client that hangs up stops its answer.",
        "Content safety is not modelled: `contentSafety` says Enabled, and nothing is filtered.",
        "Instances, autoscaling, mirrored traffic and private networking of managed online endpoints are "
        "kept and shown, and have no effect.",
    ),
    "Storage": (
        "Leases, snapshots, versions, tags and batches answer 501; page and append blobs are refused.",
        "User-delegation SAS, stored access policies, directory SAS and SharedKeyLite are refused.",
        "CRC64 is ignored; `spr` is signed but not enforced; metadata names come back in lower case.",
        "A missing `x-ms-blob-type` means BlockBlob.",
        "A SAS that the mock issues lives up to half an hour longer than asked for, so that the one that "
        "azure-ai-ml derives from it can be verified without keeping any.",
        "Blocks are forced to the disk when their list comes, not one by one.",
    ),
    "Time": (
        "Virtual time moves jobs, resources and logs. Tokens, signatures, certificates and blobs keep real "
        "time, as the clients that check them do.",
        "The train engine has real time only.",
    ),
}

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
        "`mockSimulated: true`. On OpenAI's wire the job's metadata says so: `mock_trained_on`, "
        "`mock_simulated`.",
        "Retirement is judged by the catalogue's date (`--as-of`, default 2025-06-01), not by today.",
        "Hyperparameters that the local engine cannot do (half precision on a CPU) are accepted, as by the "
        "service, and the job then fails with that reason.",
        "A job's name may be used again once the job is deleted (the service's rule is not recorded); the "
        "model that the first one registered stays.",
        "A system turn that the base's chat template has no place for (Phi-3-medium's drops it) is put "
        "before the next user turn, in training and at the endpoints; what the service does is not recorded.",
        "Managed compute is a name with a size: no node is started, and the job runs on this machine.",
        "Of pipeline jobs, those of the registry's chat-completion component run, as one fine-tuning run; "
        "evaluation steps write no scores.",
        "The MLflow tracking plane is not served.",
    ),
    "Models and endpoints": (
        "The registered model holds a PEFT adapter under `data/model/`; its `MLmodel` has a "
        "`python_function` flavour whose loader is ours (`local_runner.pyfunc`), and one of our own. The "
        "service's has others.",
        "Two bases are in memory at most, and a third takes the place of the one that was asked longest ago, "
        "as soon as nobody listens to it; an endpoint whose base is not loaded is still `Online`, and its "
        "next answer takes as long as loading does. Up to 32 questions to a base are answered at once, "
        "whatever their adapters; more wait. A client that hangs up stops its answer.",
        "Content safety is not modelled: `contentSafety` says Enabled, and nothing is filtered.",
        "Instances, autoscaling, mirrored traffic and private networking of managed online endpoints are "
        "kept and shown, and have no effect.",
    ),
    "OpenAI's doors": (
        "One account, `mock-foundry`, with one key. `/v1` is OpenAI's way in, `/openai/v1` and "
        "`/openai/…?api-version=` are Azure's; all of them have the same files, jobs and models.",
        "A job made here is a FineTuning job of the workspace, too: Azure ML's `jobs.list` shows it, with "
        "its metadata as tags, and `Paused` where it is; its model is registered as `{job}-model`. No "
        "record shows whether the service does so for Phi. A job of Azure ML's doors is not listed here, "
        "for its rows have no file ids; the model that it registered is, as `name:version`.",
        "Files are judged while they are uploaded: `processed` or `error` at once. A file with a bad row is "
        "refused when a job names it; too few examples fail the job, as on OpenAI's service.",
        "`auto` is 3 epochs, a batch of 0.2 % of the examples, and a multiplier of 1; the service's own "
        "choice is not public. Only the method `supervised` is served, and no integration; a tuned model "
        "cannot be tuned again.",
        "A cancellation that the engine has not heard of yet shows the status of before. Pausing is "
        "for every job here; the run stops after its step and goes on from there, with the same bytes.",
        "Tokens are counted by the engine's own tokenizer, in a simulation by 4 bytes each. A simulation "
        "writes at most 20 lines of metrics.",
        "`tools`, `logprobs`, penalties and JSON formats are refused, as the engine has none of them. "
        "Content filters are not modelled: there are no `prompt_filter_results`.",
        "Result files hold no weights, as on the service; after `maas mock set --weights on` the adapter's "
        "two files are among them. `--file-bytes` takes larger files of rows than the service's 512 MB.",
        "Several answers (`n`) are made side by side, each with a seed of its own that follows the "
        "request's.",
        "Files lie in the workspace's storage under `openai/`.",
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

"""What engines answer, after their documentation: enough of each page to read it, histograms included."""

import json

from router.collectors import tgi, triton, trtllm
from router.collectors.collector import METRICS, MODELS


def models(*ids: str) -> bytes:
    return json.dumps(
        {"object": "list", "data": [{"id": id_, "object": "model", "created": 1} for id_ in ids]}
    ).encode()


VLLM_PAGE = b"""\
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",major="3"} 1.0
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.76377000025e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="llama"} 7.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="llama"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="llama"} 0.25
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="llama"} 12.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="llama"} 20.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="llama"} 3.5
vllm:time_to_first_token_seconds_count{engine="0",model_name="llama"} 20.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="7012"} 1.0
"""

SGLANG_PAGE = b"""\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="0"} 4.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="0"} 2.0
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="0"} 0.5
"""

TGI_PAGE = b"""\
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 5
# TYPE tgi_queue_size gauge
tgi_queue_size 1
# TYPE tgi_request_duration histogram
tgi_request_duration_bucket{le="0.1"} 3
"""

TRITON_PAGE = b"""\
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="resnet",version="1"} 2
nv_inference_pending_request_count{model="bert",version="3"} 4
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="resnet",version="1"} 9000
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5
nv_gpu_utilization{gpu_uuid="GPU-2"} 1
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 25769803776
nv_gpu_memory_total_bytes{gpu_uuid="GPU-2"} 25769803776
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 10737418240
nv_gpu_memory_used_bytes{gpu_uuid="GPU-2"} 0
"""

TRITON_TRTLLM_PAGE = b"""\
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="preprocessing",version="1"} 90
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 8
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 11
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
# TYPE nv_trt_llm_kv_cache_block_metrics gauge
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.75
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 6239
"""

TRTLLM_SERVE_PAGE = b"""\
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{engine_type="trtllm",model_name="llama"} 6.0
# TYPE trtllm_num_requests_waiting gauge
trtllm_num_requests_waiting{engine_type="trtllm",model_name="llama"} 1.0
# TYPE trtllm_kv_cache_utilization gauge
trtllm_kv_cache_utilization{engine_type="trtllm",model_name="llama"} 0.125
"""

EMULATOR_PAGE = (
    VLLM_PAGE
    + b"""\
# TYPE ccr_node_gpu_memory_used_bytes gauge
ccr_node_gpu_memory_used_bytes 10737418240
# TYPE ccr_node_gpu_memory_total_bytes gauge
ccr_node_gpu_memory_total_bytes 25769803776
# TYPE ccr_node_gpu_utilization gauge
ccr_node_gpu_utilization 0.875
# TYPE ccr_node_model_loaded gauge
ccr_node_model_loaded{model="chat@1"} 1
ccr_node_model_loaded{model="chat@2"} 0
# TYPE ccr_node_model_loading gauge
ccr_node_model_loading{model="chat@3"} 1
# TYPE ccr_node_model_load_seconds gauge
ccr_node_model_load_seconds{model="chat@1"} 5.5
# TYPE ccr_node_boot_info gauge
ccr_node_boot_info{boot_id="b-7"} 1
"""
)

TRITON_INDEX = json.dumps(
    [
        {"name": "resnet", "version": "1", "state": "READY"},
        {"name": "bert", "version": "3", "state": "LOADING", "reason": ""},
        {"name": "gone", "state": "UNAVAILABLE", "reason": "unloaded"},
        {"name": "never-loaded"},
    ]
).encode()

#: engine -> everything it answers
PAGES = {
    "vllm": {METRICS: VLLM_PAGE, MODELS: models("llama", "llama-lora")},
    "sglang": {METRICS: SGLANG_PAGE, MODELS: models("qwen")},
    "tgi": {
        METRICS: TGI_PAGE,
        MODELS: models("mistral"),
        tgi.INFO: b'{"model_id": "mistral", "max_batch_size": null}',
    },
    "triton": {triton.METRICS: TRITON_PAGE, triton.INDEX: TRITON_INDEX},
    "trtllm": {trtllm.METRICS: TRTLLM_SERVE_PAGE, MODELS: models("llama")},
    "emulator": {METRICS: EMULATOR_PAGE},
    "auto": {METRICS: VLLM_PAGE, MODELS: models("llama")},
}

"""In which order vLLM launches kernels, as far as hand-over relies on it. No other module assumes anything
about it. The paths are those of vLLM 0.32; tests/integration/engines/test_stream_order.py reads them.

On a GPU a step that has been launched is not computed yet, and with asynchronous scheduling two steps are in
flight. A mark of the device's stream tells when what was launched before it has ended.

1. One thread launches all of a rank's kernels on its current stream, one step after the other
   (v1/worker/gpu/model_runner.py, GPUModelRunner.main_stream and execute_model).
2. A step calls `bind_connector_metadata` in that thread, before its forward pass is launched, and after the
   new blocks were zeroed and copied (update_requests there; v1/worker/gpu/kv_connector.py,
   ActiveKVConnector.pre_forward). So the mark of `before_step` is behind all earlier steps.
3. A request ends when the scheduler has its last token (v1/core/sched/scheduler.py, update_from_output).
   Its grant goes with a later step, whose mark is behind the forward passes that wrote its blocks.
4. Blocks that a load is to fill may still be in use by earlier steps, never by the step that orders the load
   or a later one: it is parked until the load has ended (Scheduler.schedule, WAITING_FOR_REMOTE_KVS), and its
   blocks are not zeroed (skip_zeroing_group_ids, by our get_loaded_kv_cache_group_ids).
5. `save_kv_layer` is called when the attention of a layer, which follows the writing of its KV, has been
   launched (model_executor/layers/attention/kv_transfer_utils.py, maybe_transfer_kv_layer), once a layer: we
   never enable microbatches (enable_dbo). A replay of a full graph leaves it out, so engines that push ask
   for piecewise graphs (LLMServeConnector.requires_piecewise_for_cudagraph).
6. What a step launches after a load was reported sees the loaded blocks, since a load is reported when its
   last copy has ended.

The jobs of the store (engines/store/worker.py) rely on 1, too: each takes a mark when it is submitted.

On the CPU a step is computed when it returns, and all marks are reached at once.
"""

from llmserve.transfer.devices import Copies, Mark


class StreamOrder:
    """Called in the thread that launches the kernels."""

    def __init__(self, copies: Copies) -> None:
        """copies: of the memory that the KV is in."""
        self._copies = copies

    def before_step(self) -> Mark:
        """Returns the mark behind all earlier steps. At `bind_connector_metadata`, and for the store also at
        `handle_preemptions`, which comes just before it."""
        return self._copies.mark()

    def after_layer(self) -> Mark:
        """Returns the mark behind the layer. At `save_kv_layer`."""
        return self._copies.mark()

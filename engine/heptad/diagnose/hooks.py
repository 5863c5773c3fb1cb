"""The hooks of Keras, Lightning and transformers, with what serves for each here.

The tables in `docs/how-to.md` begin with the same words and say more; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping

_HOOKS = {
    "open(run)": "on_init_end",
    "close(run)": "on_exception",
    "state_dict": "on_save_checkpoint",
    "load_state_dict": "on_load_checkpoint",
    "on_exit_before_loop": "on_train_begin on_train_start on_fit_start",
    "on_enter_before_epoch": "on_epoch_begin on_epoch_start on_train_epoch_start",
    "on_enter_before_step": "on_before_zero_grad",
    "on_enter_process_batch": "on_batch_begin on_batch_start on_train_batch_begin on_train_batch_start",
    "on_exit_process_batch": "on_after_backward",
    "on_exit_process_batch for batch and output, on_exit_after_step for counting, on_exit_optimizer_update for what "
    "needs the new weights": "on_batch_end on_train_batch_end",
    '@on_enter("process_batch", when=lambda run: run.batch_index % run.accumulation == 0)': "on_step_begin",
    '@on_exit("after_step", when=lambda run: not run.update_due)': "on_substep_end",
    "on_enter_optimizer_update": "on_before_optimizer_step on_pre_optimizer_step",
    "on_exit_optimizer_update": "on_optimizer_step on_step_end",
    "on_enter_evaluate": "on_validation_start on_validation_epoch_start on_test_begin",
    "on_exit_evaluate": "on_evaluate on_test_end on_validation_end on_validation_epoch_end",
    "on_exit_checkpoint": "on_save",
    "on_exit_after_epoch": "on_epoch_end on_train_epoch_end",
    "on_exit_after_loop": "on_train_end on_fit_end",
    "nothing": "on_push_begin",
    "on_loss": "on_before_backward",
    "nothing: no handler is called for batches of an evaluation. A metric gets each output": "on_validation_batch_end "
    "on_validation_batch_start",
    "nothing: engine.predict(data) yields the output of each batch": "on_predict on_prediction_step",
    "nothing: loggers read run.records(since) on the moments that suit them": "on_log",
}

HERE: Mapping[str, str] = {hook: here for here, hooks in _HOOKS.items() for hook in hooks.split()}
"""For each hook what serves here: it comes after 'here it would be'."""

"""What the hooks of other libraries are here: for the message to those who bring a callback along.

The tables in `docs/how-to.md` say the same at greater length; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping

_LOOP_BEGINS = "on_exit_before_loop"
_EPOCH_BEGINS = "on_enter_before_epoch"
_BATCH_BEGINS = "on_enter_process_batch"
_BATCH_OVER = (
    "on_exit_process_batch for batch and output, on_exit_after_step for counting, on_exit_optimizer_update for what "
    "needs the new weights"
)
_EPOCH_OVER = "on_exit_after_epoch"
_LOOP_OVER = "on_exit_after_loop"
_EVALUATION_BEGINS = "on_enter_evaluate"
_EVALUATED = "on_exit_evaluate"
_BATCH_OF_AN_EVALUATION = "nothing: no handler hears an evaluation's batches. A metric sees each output"
_PREDICTED = "nothing: engine.predict(data) yields the output of each batch"

HERE: Mapping[str, str] = {
    "on_init_end": "open(run)",
    "on_train_begin": _LOOP_BEGINS,
    "on_train_start": _LOOP_BEGINS,
    "on_fit_start": _LOOP_BEGINS,
    "on_epoch_begin": _EPOCH_BEGINS,
    "on_epoch_start": _EPOCH_BEGINS,
    "on_train_epoch_start": _EPOCH_BEGINS,
    "on_batch_begin": _BATCH_BEGINS,
    "on_batch_start": _BATCH_BEGINS,
    "on_train_batch_begin": _BATCH_BEGINS,
    "on_train_batch_start": _BATCH_BEGINS,
    "on_step_begin": '@on_enter("process_batch", when=lambda run: run.batch_index % run.accumulation == 0)',
    "on_before_zero_grad": "on_enter_before_step",
    "on_before_backward": "nothing: forward, loss and backward are one body. Do it at the end of compute_loss",
    "on_after_backward": "on_exit_process_batch",
    "on_batch_end": _BATCH_OVER,
    "on_train_batch_end": _BATCH_OVER,
    "on_substep_end": '@on_exit("after_step", when=lambda run: not run.update_due)',
    "on_before_optimizer_step": "on_enter_optimizer_update",
    "on_pre_optimizer_step": "on_enter_optimizer_update",
    "on_optimizer_step": "on_exit_optimizer_update",
    "on_step_end": "on_exit_optimizer_update",
    "on_validation_start": _EVALUATION_BEGINS,
    "on_validation_epoch_start": _EVALUATION_BEGINS,
    "on_test_begin": _EVALUATION_BEGINS,
    "on_validation_batch_start": _BATCH_OF_AN_EVALUATION,
    "on_validation_batch_end": _BATCH_OF_AN_EVALUATION,
    "on_evaluate": _EVALUATED,
    "on_test_end": _EVALUATED,
    "on_validation_end": _EVALUATED,
    "on_validation_epoch_end": _EVALUATED,
    "on_prediction_step": _PREDICTED,
    "on_predict": _PREDICTED,
    "on_log": "nothing: loggers read run.records(since) on the moments that suit them",
    "on_save": "on_exit_checkpoint",
    "on_epoch_end": _EPOCH_OVER,
    "on_train_epoch_end": _EPOCH_OVER,
    "on_train_end": _LOOP_OVER,
    "on_fit_end": _LOOP_OVER,
    "on_save_checkpoint": "state_dict",
    "on_load_checkpoint": "load_state_dict",
    "on_exception": "close(run)",
    "on_push_begin": "nothing",
}
"""By their name there (Keras, Lightning, transformers) what serves here: it comes after 'here it would be'."""

"""What the hooks of other libraries are here: for the message to those who bring a callback along."""

from __future__ import annotations

from collections.abc import Mapping

_EPOCH_OVER = "on_exit_after_epoch"
_STEP_BEGINS = "on_enter_process_batch"
_STEP_OVER = "on_exit_after_step"
_EVALUATED = "on_exit_evaluate"

HERE: Mapping[str, str] = {
    "on_train_begin": "on_exit_before_loop",
    "on_train_start": "on_exit_before_loop",
    "on_fit_start": "on_enter_before_loop",
    "on_epoch_begin": "on_enter_before_epoch",
    "on_epoch_start": "on_enter_before_epoch",
    "on_train_epoch_start": "on_enter_before_epoch",
    "on_batch_begin": _STEP_BEGINS,
    "on_batch_start": _STEP_BEGINS,
    "on_step_begin": _STEP_BEGINS,
    "on_train_batch_begin": _STEP_BEGINS,
    "on_train_batch_start": _STEP_BEGINS,
    "on_after_backward": "on_exit_process_batch",
    "on_batch_end": _STEP_OVER,
    "on_step_end": _STEP_OVER,
    "on_substep_end": _STEP_OVER,
    "on_train_batch_end": _STEP_OVER,
    "on_before_optimizer_step": "on_enter_optimizer_update",
    "on_pre_optimizer_step": "on_enter_optimizer_update",
    "on_optimizer_step": "on_exit_optimizer_update",
    "on_epoch_end": _EPOCH_OVER,
    "on_train_epoch_end": _EPOCH_OVER,
    "on_evaluate": _EVALUATED,
    "on_test_end": _EVALUATED,
    "on_validation_end": _EVALUATED,
    "on_validation_epoch_end": _EVALUATED,
    "on_train_end": "on_exit_after_loop",
    "on_fit_end": "on_exit_after_loop",
    "on_save_checkpoint": "state_dict",
    "on_load_checkpoint": "load_state_dict",
    "on_exception": "close",
}
"""By their name there (Keras, Lightning, transformers) the method of a `Plugin`."""

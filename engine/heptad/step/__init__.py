"""What the engine does in each state, and the step function that training, evaluation and prediction share."""

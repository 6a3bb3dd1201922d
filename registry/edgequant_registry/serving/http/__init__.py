"""HTTP around the model: MLflow's app, with OpenAI's paths beside it and limits in front of both."""

"""Prediction with a trained model: the predictor, ensembles, and what they return. Import its modules by name."""

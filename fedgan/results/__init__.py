"""What a trained model becomes: scores, pictures, a report."""

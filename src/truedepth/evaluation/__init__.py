"""What a plan does to a model's quality, and the text it is judged on."""

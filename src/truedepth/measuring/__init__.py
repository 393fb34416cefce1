"""Measuring what a plan costs: speed, bytes read, memory bandwidth, and cost models for the search."""

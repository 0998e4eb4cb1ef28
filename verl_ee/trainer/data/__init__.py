"""The data of a job: made part by part, and encoded."""

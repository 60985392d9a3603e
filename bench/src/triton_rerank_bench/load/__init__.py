"""One server under load: callers that wait for answers, arrivals that do not."""

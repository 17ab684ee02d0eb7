"""Reading marks: verifiers of weights and answers, sequential and ranged readings, alignment, null tables."""

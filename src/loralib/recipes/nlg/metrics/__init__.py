"""How close generated text comes to what people wrote: the metrics of the E2E, WebNLG and DART evaluations, one a file."""

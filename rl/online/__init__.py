"""The learner that runs beside the routers: reads what became of requests, corrects constants, trains, publishes."""

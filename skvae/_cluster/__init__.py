"""A fit on a Dask cluster: workers read the rows and train together, the client watches over them.

Reading is tasks of Dask, which Dask gives to other workers when one dies. Training is a task for
each worker, which all take the same steps, for some time; then the first of them returns how far
they have come, and the client starts the next ones. So a worker that dies, or that does not answer
any more, costs no more than that time.
"""

"""Results elsewhere: finished runs are pushed to a place such as a bucket, and tables read from there."""

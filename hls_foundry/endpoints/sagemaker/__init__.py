"""SageMaker endpoints: create, update, call and delete them, of all four kinds."""

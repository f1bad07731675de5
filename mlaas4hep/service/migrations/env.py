"""Runs the migrations in the connection that `database` hands over."""

from alembic import context

from mlaas4hep.service.database import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()

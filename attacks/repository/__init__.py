"""A repository or a connection that holds back, mixes or rolls back what was published."""
